"""Something to carry: so many idle processes, and a listener that keeps every connection.

load.py NUMBER-PROCESSES-PORT: the number only tells one from another, port 0 is none.
"""

import signal
import socket
import subprocess
import sys

_, processes, port = map(int, sys.argv[1].split("-"))
children = [subprocess.Popen(["sleep", "infinity"]) for _ in range(processes - 1)]
kept = []
if port:
    with socket.create_server(("", port), backlog=4096) as listener:
        while True:
            kept.append(listener.accept())
signal.pause()
