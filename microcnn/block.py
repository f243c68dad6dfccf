"""The block of words through which threads share a parallel loop; kernels/team.py says how, team.py whose threads they are."""
from __future__ import annotations

import numpy as np

from .arena import aligned_bytes, start_of

# The most threads that kernels use.
MOST = 64

# What compiled code calls to run a parallel loop, and what it calls the block.
PARALLEL_FOR, TEAM = "microcnn_parallel_for", "microcnn_team"

# Where the words stand, each in a line of the cache of its own: the number of the loop (its pieces in the low byte), who works
# with the team, pieces that were ever done, whether the threads shall end, into how many pieces loops are split, the loop
# itself, and from CLAIMS on for each piece the loop that it was last claimed for.
LINE = 8
GENERATION, OWNER, DONE, STOP, SPLIT, JOB, CLAIMS = range(0, 7 * LINE, LINE)
FUNCTION, ARGUMENTS, SIZES, STEPS, DATA, SIZE_COUNT, ARGUMENT_COUNT = range(JOB, JOB + 7)
SPACES = CLAIMS + MOST * LINE
# So many words each thread has to set up a call.
SPACE = 512

WORDS = aligned_bytes(8 * (SPACES + MOST * SPACE)).view(np.int64)
ADDRESS = start_of(WORDS)
WORDS[SPLIT] = 1
