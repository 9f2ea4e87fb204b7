"""Starting the processes of a run: on this machine, on several, by a cluster's scheduler."""
