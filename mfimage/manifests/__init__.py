"""Manifests that run an image elsewhere.

A kind of manifest is a module that turns an image and options into data, which `text.to_yaml`
writes; `checks` has the rules of Kubernetes that options are validated against. The command line
reads the kinds from a table, such as `kuberay.KINDS`.
"""
