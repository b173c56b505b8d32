"""Start a process, wait for it, say what it took: `python -S launch.py RESULT ARGV…`.

A process of its own because Linux counts a child's peak memory from what its parent held when it was
started (`exec` keeps the high-water mark): this one holds 9 MiB, less than anything that is measured.
"""

import os
import sys
import time

begin = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
wall_s = time.perf_counter() - begin
peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
with open(sys.argv[1], "w", encoding="ascii") as result:
    cpu_s = usage.ru_utime + usage.ru_stime
    result.write(f"{os.waitstatus_to_exitcode(status)} {wall_s} {peak_bytes} {cpu_s}")
