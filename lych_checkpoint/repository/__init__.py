"""Git repositories that nobody should trust: the only rooms that run git.

Whatever reads or writes a working tree goes through a git directory of our own (`lens`), so that no configuration,
hook or attribute driver of the repository is ever consulted. In the repository's own git directory only three
commands run: ``config --list``, ``update-ref`` and ``symbolic-ref``.
"""
