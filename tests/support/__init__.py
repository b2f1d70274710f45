"""What tests need beside Python: a Docker engine, a base image, registries."""
