"""A Metaflow task: ``pathspec`` finds it, ``task`` describes it, ``datastore`` reads its artifacts.

``running`` is the task that this process runs, ``artifacts`` chooses and copies what a function
needs, ``pickles`` reads the names in their pickles, ``roots`` says where packages are kept.
"""
