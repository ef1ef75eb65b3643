"""What recording and restoring weights costs, beside peers and beside what the machine can do.

    python -m benchmarks.storage [--only WORKLOAD [--part PART]] [--peers VENV] [--rounds N]

Four workloads, each recorded on SQLite and on PostgreSQL in the same rounds as the peers and the
machine's own limits, so that noise hits all alike. Figures are medians. Whatever is restored is
compared bit for bit with what was recorded; a difference ends the run.
"""
