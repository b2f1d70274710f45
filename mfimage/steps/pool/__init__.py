"""Pools of warm workers for the items of a foreach: ``@worker_pool``.

In the process that runs the flow, `decorator` starts one `server` a step, with the first item, and
puts `client` before the command line of each item. `client` hands that command line, its variables,
folder, stdin, stdout and stderr to the server over a socket in a private folder; the first `worker`
that is free runs it and gives back an exit status. So each item stays a task of its own, with its
own process for Metaflow to watch.

`client` is not an `executor` behind ``launch.py``: it starts once an item, and what that imports
would cost more than the rest of the item.

Order: `protocol`, `state`, `worker`, `server`, `client`, `decorator`. `client`, `server` and
`worker` are scripts; the first two need the standard library only.
"""
