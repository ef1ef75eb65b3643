"""Many servers behind one log: each follows it, says what it shows, and fences itself.

Nobody directs them. What a replica is to show follows from the log and its name (`rollouts`), who
decides is the database that orders the log, and whether a replica is ready is its own word
(`readiness`), which it gives only for weights whose digest it has proven.
"""
