"""Tensors that backward makes again instead of keeping them: less memory for a little more work, and the same bits.

A schedule's rows are rewritten: where backward first reads such a tensor, the rows that made it come once more, into a buffer
of its own. Kernels are deterministic, and weights are updated only when all that needs their old values is done.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .lifetimes import forward_ends, held, set_lifetimes, touches
from .memory import Buffer, most_alive
from .parts import Policy, Row

# Kernels in the order of what it costs to run them again: the caller's array is still there; one pass over memory; all others.
FREE = ("layout.input",)
CHEAP = ("layout.", "batchnorm.", "activation.", "elementwise.", "unary.", "dropout.", "augment.")
# What a row left behind for backward makes it cheaper the second time: the kernel that does so, and the fields that it lacks.
AGAIN = {"batchnorm.forward_batch": ("batchnorm.forward_saved", ("eps",))}
# A few numbers that take a whole pass.
NEVER = ("batchnorm.statistics_batch", "moments.statistics_batch")
# Outputs of these, of so many bytes, take as long to be written to memory and read back as to be made again where they are
# wanted.
QUICK, QUICK_BYTES = ("batchnorm.forward_batch", "batchnorm.forward_frozen"), 2**18


@dataclass(eq=False)
class Candidate:
    """A tensor that forward is done with before backward wants it. makers: the rows that write it, in order; gone, back: the
    last row of forward and the first of backward that touch it."""

    buffer: Buffer
    makers: list[int]
    gone: int
    back: int
    tier: int


class Stale(Exception):
    """What a row read has changed since."""


class Rewriter:
    """The rows of one training schedule, and what they may leave out."""

    def __init__(self, rows: Sequence[Row], buffers: Iterable[Buffer]):
        self.rows = list(rows)
        self.begin = forward_ends(self.rows)
        self.transient = {id(buffer): buffer for buffer in buffers}
        self.uses, self.writers = touches(self.rows)
        self.candidates = [found for key in self.transient if (found := self._candidate(key)) is not None]

    def reads_input(self, candidate: Candidate) -> bool:
        """Whether it is made of the caller's arrays again."""
        return any(self.rows[number].kernel in FREE for number in candidate.makers)

    def _again(self, row: Row) -> Row:
        """The row as it comes the second time."""
        kernel, without = AGAIN.get(row.kernel, (row.kernel, ()))
        fields = {name: value for name, value in row.fields.items() if name not in without}
        return Row(kernel, fields, row.layer, row.op, "backward")

    def _candidate(self, key: int) -> Candidate | None:
        buffer, uses, makers = self.transient[key], self.uses.get(key, []), self.writers.get(key, [])
        early, late = [i for i in uses if i <= self.begin], [i for i in uses if i > self.begin]
        if buffer.kind != "activation" or buffer.held or not early or not late or not makers or makers[-1] > self.begin:
            return None
        if any(makers[0] < number < makers[-1] for number in uses if number not in makers):
            return None                     # someone reads what is written over later: it would have to be made twice
        tier = 0
        for number in makers:
            row = self._again(self.rows[number])
            if row.kernel in NEVER:
                return None
            for _, other, mode in held(row):
                if mode in ">=" and other is not buffer and other.kind != "scratch":
                    return None             # it makes something else, too, which is still wanted
            tier = max(tier, 0 if row.kernel in FREE else 1 if row.kernel.startswith(CHEAP) else 2)
        return Candidate(buffer, makers, early[-1], late[0], tier)

    def quicker(self) -> tuple[dict[int, Candidate], tuple[list[Row], list[int], list[Buffer]]]:
        """What takes no longer that way: large outputs of batch norm, whose input backward reads in any case. And `rewritten`
        with it."""
        chosen = {id(one.buffer): one for one in self.candidates
                  if one.buffer.bytes >= QUICK_BYTES and all(self._at_hand(number, one.back) for number in one.makers)}
        for key, one in list(chosen.items()):       # not what would have to be made again first
            if any(id(self.rows[number].fields["x"]) in chosen for number in one.makers):
                del chosen[key]
        while True:
            try:
                return chosen, self.rewritten(chosen)
            except Stale as stale:
                chosen.pop(stale.args[0])

    def _at_hand(self, number: int, back: int) -> bool:
        """Whether what a row reads is still there, and read, when backward wants what it made."""
        row = self.rows[number]
        return row.kernel in QUICK and self.uses[id(row.fields["x"])][-1] >= back

    def rewritten(self, chosen: dict[int, Candidate]) -> tuple[list[Row], list[int], list[Buffer]]:
        """(rows, for each the number of the old row that it is or serves, new buffers) with what was chosen made again.

        Raises Stale with a chosen buffer's id where what its makers read has changed since.
        """
        out: list[Row] = []
        origin: list[int] = []
        made: list[Buffer] = []
        current: dict[tuple[int, int], Buffer] = {}
        written: dict[int, int] = {}

        def copy_of(buffer: Buffer) -> Buffer:
            made.append(replace(buffer, first=None, last=None, offset=-1))
            return made[-1]

        def make(makers: list[int], buffer: Buffer, for_whom: int, at: int) -> Buffer:
            """The buffer's contents once more, in a new one."""
            own = {id(buffer): copy_of(buffer)}
            for number in makers:
                row = self._again(self.rows[number])
                for name, other, mode in held(row):
                    key = id(other)
                    if key in own:
                        found = own[key]
                    elif other.kind == "scratch" and not other.held and key in self.writers:
                        # what a row before it packed, say, is made again, too; what it writes itself needs room
                        before = [i for i in self.writers[key] if i < number]
                        found = make(before, other, for_whom, at) if mode in "<=" and before else copy_of(other)
                        own[key] = found
                    elif key in chosen:
                        found = again(chosen[key], at)
                    elif written.get(key, -1) > number:
                        raise Stale(for_whom)
                    else:
                        found = other
                    row.fields[name] = found
                out.append(row)
                origin.append(at)
            return own[id(buffer)]

        def again(candidate: Candidate, at: int) -> Buffer:
            key = id(candidate.buffer)
            # what is only an ingredient of another tensor yet is made anew when its own turn comes: until then it takes no room
            place = (key, at) if at < candidate.back else (key, candidate.back)
            if place not in current:
                current[place] = make(candidate.makers, candidate.buffer, key, at)
            return current[place]

        for number, row in enumerate(self.rows):
            if number > self.begin:
                fields = {name: again(chosen[id(buffer)], number) for name, buffer, _ in held(row) if id(buffer) in chosen}
                row = replace(row, fields=row.fields | fields) if fields else row
            out.append(row)
            origin.append(number)
            for _, buffer, mode in held(row):
                if mode in ">=":
                    written[id(buffer)] = number
        return out, origin, made


def lighten(rows: Sequence[Row], prepared: Sequence[Row], buffers: Sequence[Buffer], policy: Policy
            ) -> tuple[list[Row], list[Buffer], list[str]]:
    """(rows, buffers with lifetimes, names of the tensors that backward makes again), as the policy says.

    With `quick`, first what is no slower. Then, where the most is alive at one time, what only waits there goes: first what is
    cheapest to make again, then the largest; until the limit is reached, or nothing waits there any more.
    """
    rewriter = Rewriter(rows, buffers)
    able = {id(one.buffer): one for one in rewriter.candidates
            if one.tier <= policy.tier and (policy.inputs or not rewriter.reads_input(one))}
    chosen: dict[int, Candidate] = {}
    made: list[Buffer] = []
    now, origin = list(rows), list(range(len(rows)))
    alive = set_lifetimes(now, prepared, buffers)
    if policy.quick:
        trial, found = rewriter.quicker()
        bound, _ = most_alive(alive)
        if most_alive(set_lifetimes(found[0], prepared, [*buffers, *found[2]]))[0] <= bound:
            chosen, (now, origin, made) = trial, found
            able = {key: one for key, one in able.items() if key not in chosen}
        alive = set_lifetimes(now, prepared, [*buffers, *made])
    while able:
        bound, at = most_alive(alive)
        if policy.limit is not None and bound <= policy.limit:
            break
        there = origin[min(at, len(origin) - 1)]
        waiting = sorted((one for one in able.values() if one.gone < there < one.back),
                         key=lambda one: (one.tier, -one.buffer.size))
        if not waiting:
            break
        wanted = waiting if policy.limit is None else waiting[:1]
        trial = chosen | {id(one.buffer): one for one in wanted}
        try:
            found = rewriter.rewritten(trial)
        except Stale as stale:
            for key in [stale.args[0]] if stale.args[0] in able else [id(one.buffer) for one in wanted]:
                able.pop(key)
            continue
        trial_alive = set_lifetimes(found[0], prepared, [*buffers, *found[2]])
        for one in wanted:
            able.pop(id(one.buffer))
        if most_alive(trial_alive)[0] <= bound:
            chosen, (now, origin, made), alive = trial, found, trial_alive
        else:
            alive = set_lifetimes(now, prepared, [*buffers, *made])
    return now, alive, [one.buffer.name for one in chosen.values()]
