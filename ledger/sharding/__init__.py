"""Models that are cut over ranks of torch.distributed: recorded and restored by all of them.

Every rank compares, encodes and stores what it has; the first appends the one event that holds all.
No rank has the whole model, and what they tell each other is plain bytes: sizes, digests, and less
than 256 KiB of each tensor where a digest's chunk lies across two ranks.
"""
