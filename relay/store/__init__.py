"""Where state lives that several processes share: keys, the ledger, limits, budgets.

`port` is what the rest of the relay knows of it; `redis` and `embedded` are the two ways to have one. What is decided
there is decided by a Lua script, whole or not at all, in the server's own time.
"""
