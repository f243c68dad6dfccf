"""The peers, each in a file of its own. They run in other interpreters too: nothing here but peer_microcnn imports microcnn,
and what a file needs beside numpy is its peer's library.

A runner has start(threads, variant), which returns the version; infer(task), which returns a function of x (N, C, H, W)
float32 to outputs (N, K); and where it trains train(task), which returns a function of x and classes t (N,) int64 to the loss
before the step. CHANNELS_LAST names the variants that take x as (N, H, W, C); DIFFERS says what its training step leaves out.
"""
