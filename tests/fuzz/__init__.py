"""Mutated requests over raw sockets to a running ``cachefsm serve``; see ``__main__``."""
