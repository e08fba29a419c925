"""Reads the text of an optimised HLO module: what it launches in every turn of every loop.

A launch is an instruction that is a kernel, a copy or a library call of its own; a fusion is one. A
loop inside a loop counts as often as it turns where the compiler knows its number of turns, and
once where it does not. Of a conditional the branch with the most launches counts.
"""

import re
from collections import Counter
from functools import cached_property
from typing import NamedTuple

FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
    "add-dependency", "opt-barrier", "partition-id", "replica-id",
)  # fmt: skip
"""Instructions that only name a value."""

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-", "reduce-scatter")

HEAVY = ("dot", "convolution", "sort", "scatter", "reduce", "reduce-window", "gather", "transpose")
"""A fusion is named after the first of these that it holds."""

NO_LIBRARY = ("triton", "AllocateBuffer", "Bitcast", "Sharding", "ResizeBuffer", "TileBarrier")
"""Parts of the names of custom calls that are not of a library."""


class Instruction(NamedTuple):
    """`name = shape operation(rest`, where rest holds the operands and the attributes."""

    name: str
    shape: str
    operation: str
    rest: str

    @classmethod
    def of(cls, line):
        name, text = line.removeprefix("ROOT ").split(" = ", 1)
        end = closing(text) if text.startswith("(") else text.index(" ")
        operation, rest = text[end:].split("(", 1)
        return cls(name.lstrip("%"), text[:end].strip(), operation.strip(), rest)

    def named(self, *attributes):
        """The computations that these attributes name."""
        single = rf"\b(?:{'|'.join(attributes)})=%?([\w.\-]+)"
        several = rf"\b(?:{'|'.join(attributes)})=\{{([^}}]*)\}}"
        listed = (name for names in re.findall(several, self.rest) for name in names.split(","))
        return re.findall(single, self.rest) + [name.strip().lstrip("%") for name in listed]

    def operands(self):
        return re.findall(r"%([\w.\-]+)", self.rest[: closing("(" + self.rest) - 1])

    @property
    def target(self):
        """The function of a custom call, None of anything else."""
        found = re.search(r'custom_call_target="([^"]+)"', self.rest)
        return found and found.group(1)

    @property
    def is_launched(self):
        return self.operation not in FREE and not self.operation.endswith(("-done", "-update"))


class Loop(NamedTuple):
    """A loop of the module.

    function: the Python function that made it, "" where the module does not say. trips: the number
    of its turns, None where it is not known. launches: of one turn, by kind, those of loops inside
    included. branches: for every conditional in a turn the launches of its branches. calls: library
    calls of one turn, without those of loops inside.
    """

    function: str
    trips: int | None
    launches: Counter
    branches: list
    calls: Counter


class Module:
    """computations: name -> instructions. entry: the name of the computation that is run."""

    def __init__(self, text):
        self.text, self.computations, self.entry = text, {}, None
        self._launches = {}
        current = None
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if head:
                current = self.computations[head.group(2)] = []
                self.entry = head.group(2) if head.group(1) else self.entry
            elif line.startswith("}"):
                current = None
            elif current is not None and " = " in line:
                current.append(Instruction.of(line.strip()))

    def launches(self, name):
        """Launches of one run of a computation, by kind."""
        if name not in self._launches:
            self._launches[name] = sum(map(self._of, self.computations[name]), Counter())
        return self._launches[name]

    def _of(self, instruction):
        if instruction.operation == "while":
            turns = self.trips(instruction)
            return times(1 if turns is None else turns, self._turn(instruction))
        if inner := self._run(instruction):
            return max(map(self.launches, inner), key=Counter.total)
        return Counter([self._kind(instruction)] if instruction.is_launched else [])

    def _turn(self, loop):
        """Launches of one turn. The condition is computed where the turns are not counted."""
        parts = ("body", "condition") if self.trips(loop) is None else ("body",)
        return sum(map(self.launches, loop.named(*parts)), Counter())

    def trips(self, loop):
        """The turns of a loop that only counts, from 0 where the compiler does not say, or None."""
        if found := re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.rest):
            return int(found.group(1))
        (condition,) = loop.named("condition")
        *before, root = self.computations[condition]
        bounds = {i.name: i.rest.split(")")[0] for i in before if i.operation == "constant"}
        if root.operation != "compare" or "direction=LT" not in root.rest:
            return None
        bound = bounds.get(root.operands()[1], "")
        return int(bound) if bound.isdecimal() else None

    def _run(self, instruction):
        """The computations of which one is run as it stands."""
        attributes = {
            "conditional": ("branch_computations", "true_computation", "false_computation"),
            "call": ("to_apply",),
            "async-start": ("calls",),
        }
        return instruction.named(*attributes.get(instruction.operation, ["-"]))

    def _kind(self, instruction):
        if instruction.operation.removesuffix("-start") != "fusion":
            return instruction.target or instruction.operation
        inside = self._inside(instruction)
        heavy = next((operation for operation in HEAVY if operation in inside), "elementwise")
        return f"{heavy} fusion"

    def _inside(self, fusion):
        """The operations of a fusion, those of fusions inside included."""
        found = set()
        for name in fusion.named("calls"):
            for instruction in self.computations[name]:
                found.add(instruction.operation)
                if instruction.operation == "fusion":
                    found |= self._inside(instruction)
        return found

    @cached_property
    def loops(self):
        """Every `Loop`, an outer one before those inside."""
        return list(self._loops(self.entry))

    def _loops(self, name):
        for instruction in self.computations[name]:
            if instruction.operation == "while":
                (body,) = instruction.named("body")
                calls = Counter(self._calls(body))
                yield Loop(
                    self.function(instruction),
                    self.trips(instruction),
                    self._turn(instruction),
                    list(self._branches(body)),
                    calls,
                )
                yield from self._loops(body)
            for inner in self._run(instruction):
                yield from self._loops(inner)

    def _branches(self, name):
        """Launches of the branches of every conditional, outside loops and other conditionals."""
        for instruction in self.computations[name]:
            inner = self._run(instruction)
            if instruction.operation == "conditional":
                yield sorted((self.launches(name).total() for name in inner), reverse=True)
            else:
                for name in inner:
                    yield from self._branches(name)

    def _calls(self, name):
        """Library calls of a computation and of the branches of its conditionals, without loops."""
        for instruction in self.computations[name]:
            target = instruction.target
            if target and not any(part in target for part in NO_LIBRARY):
                yield target
            for inner in self._run(instruction):
                yield from self._calls(inner)

    @cached_property
    def collectives(self):
        operations = (i.operation for part in self.computations.values() for i in part)
        return Counter(
            operation
            for operation in operations
            if operation.startswith(COLLECTIVES) and not operation.endswith("-done")
        )

    @cached_property
    def low_products(self):
        """(products of float32 matrices that are not at full precision, all of them)."""
        low = every = 0
        for part in self.computations.values():
            shapes = {instruction.name: instruction.shape for instruction in part}
            for instruction in part:
                of = [shapes.get(name, "") for name in instruction.operands()[:2]]
                if is_product(instruction) and all(s.startswith("f32") for s in of):
                    every += 1
                    low += re.search(r"highest", instruction.rest, re.IGNORECASE) is None
        return low, every

    def function(self, instruction):
        """The qualified name of the Python function that made an instruction, "" if unknown."""
        frame = re.search(r"stack_frame_id=(\d+)", instruction.rest)
        key = frame and frame.group(1)
        for title, column in (("StackFrames", "file_location"), ("FileLocations", "function_name")):
            row = re.search(rf"\b{column}_id=(\d+)", self._tables[title].get(key, ""))
            key = row and row.group(1)
        return self._tables["FunctionNames"].get(key, "").strip('"')

    @cached_property
    def _tables(self):
        """The tables at the head of the module, title -> {number: text of the row}."""
        found = {title: {} for title in ("StackFrames", "FileLocations", "FunctionNames")}
        for title, rows in re.findall(r"^(\w+)\n((?:\d+ .*\n)+)", self.text, re.MULTILINE):
            found[title] = dict(line.split(" ", 1) for line in rows.splitlines())
        return found


def times(turns, launches):
    return Counter({kind: turns * count for kind, count in launches.items()})


def is_product(instruction):
    called = instruction.target or ""
    return instruction.operation in ("dot", "convolution") or "gemm" in called or "matmul" in called


def closing(text):
    """The place after the parenthesis that closes the one that text begins with."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place + 1
    return len(text)


def low_products(stablehlo):
    """(float32 products that are not at full precision, all of them) of a StableHLO module."""
    products = ("stablehlo.dot_general", "stablehlo.convolution")
    lines = [
        line
        for line in stablehlo.splitlines()
        if any(name in line for name in products) and re.search(r"xf32>|<f32>", line)
    ]
    return sum("HIGHEST" not in line for line in lines), len(lines)
