"""The commands of ``mambaseg``: one file each, imported only when it is called."""
