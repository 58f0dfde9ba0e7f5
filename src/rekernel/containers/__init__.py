"""Containers: podman's are taken over by its own checkpoint and restore, within our cut.

A container has a PID namespace below that of the machine, and podman's monitor as its parent: criu
dumps neither together with what is around them. Podman knows how: crun has criu dump the container
alone, and on the next kernel podman makes its network, its mounts and its monitor anew and has crun
restore it. What is ours is that this dump is part of the one cut over all trees, and that nobody
answers the container's peers before it is back.
"""
