"""Seconds that a test waits for what must come, before it takes a process or thread for one that hangs.

No test says how fast something is: a machine that others use may be a hundred times slower than another. What is waited
for is an event, the end of a process or a line that it prints; this is only there so that a fault ends a test.
"""

HANGING_S = 3600.0
"""Seconds, of all tests."""
