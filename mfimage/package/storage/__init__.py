"""Files at a root: in a local folder, or in an ``s3://``, ``gs://`` or ``azure://`` bucket.

``package/store.py`` opens roots; other rooms use ``cache`` (the user's cache folder and its locks)
and ``blobs`` (blobs by digest, bounded). ``objects`` owns obstore and ships in images: batch jobs
read and write buckets with it. Order inside the room: ``cache``, ``local`` and ``objects``, then
``blobs``, then ``buckets``.
"""
