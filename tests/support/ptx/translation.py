"""PTX as calls of NumPy on arrays of threads: blocks of instructions become Python functions.

A function gets the threads (`threads.py`), the registers, and a mask of the threads that run it. A
register has the type of the first instruction that writes it; others see a view.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ptx.memory import SHARED_BASE, PtxError
from ptx.operations import DTYPES, Lanes, operation

FILE = "<ptx>"  # of the functions, in tracebacks; its lines are numbers of instructions
_WARP_SYNCHRONIZES = ("shfl", "redux", "bar.warp", "ldmatrix", "stmatrix")
_SPECIAL = {"%tid.x", "%ctaid.x"}


class _Instruction(NamedTuple):
    text: str
    guard: str  # a predicate, or "" without
    negated: bool
    opcode: str
    operands: list[str]

    @property
    def synchronizes(self) -> str:
        """Who must arrive before it runs: the threads of a "program", of a "warp", or ""."""
        if self.opcode.startswith(_WARP_SYNCHRONIZES):
            return "warp"
        return "program" if self.opcode.startswith("bar.") else ""

    @property
    def branches(self) -> bool:
        return self.opcode.split(".")[0] in ("bra", "ret")


class _Step(NamedTuple):
    """An instruction as a call: the values of `call` go to the registers of `results`."""

    results: list[tuple[str, str]]  # register and type
    call: str
    arguments: list[tuple[str, str]]  # operand and type


@dataclass
class Segment:
    """Instructions that run one after another; only the first may synchronize."""

    steps: range
    synchronizes: str
    starts_block: bool
    guard: str = ""
    negated: bool = False
    target: int | None = None  # a segment, -1 for the end, None without a branch
    masked: Callable[..., None] | None = None
    whole: Callable[..., None] | None = None  # the block from here
    last: int = 0  # of the block


def _instructions(ptx: str) -> tuple[list[_Instruction], dict[str, int], dict[str, str]]:
    """Return instructions, what labels stand for, and the types of registers."""
    body = ptx[ptx.index(".entry") :]
    body = body[body.index("\n{") + 2 :]
    lines = (line.split("//")[0].strip() for line in body[: body.index("\n}")].splitlines())
    text = "\n".join(line for line in lines if not line.startswith((".loc", ".file")))
    instructions: list[_Instruction] = []
    labels: dict[str, int] = {}
    kinds: dict[str, str] = {}
    for part in text.replace("\n", " ").split(";"):
        statement = part.strip()
        while match := re.match(r"([\w$]+):(?!:)\s*", statement):
            labels[match[1]] = len(instructions)
            statement = statement[match.end() :]
        if not statement:
            continue
        if match := re.fullmatch(r"\.reg \.(\w+)\s+(%\w+)<\d+>", statement):
            kinds[match[2]] = match[1]
            continue
        match = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", statement)
        if match is None:
            raise NotImplementedError(statement)
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", match[4])
        instructions.append(
            _Instruction(statement, match[2] or "", match[1] == "!", match[3], operands)
        )
    return instructions, labels, kinds


def _list(operand: str) -> list[str]:
    return [each.strip() for each in operand.strip("{} ").split(",")]


class Translation:
    """The entry of a PTX text, as segments of code."""

    def __init__(self, ptx: str) -> None:
        self.instructions, self._labels, self._kinds = _instructions(ptx)
        sizes = [
            DTYPES[each.opcode.split(".")[-1]].itemsize
            for each in self.instructions
            if re.match(r"(ld|st)\.shared|(ld|st)matrix", each.opcode)
        ]
        self.shared_cell = min([*sizes, 4])
        self.names: dict[str, Any] = {"keep": _keep, "known": known}
        self._registers: dict[str, int] = {}
        self._known: set[str] = set()  # registers that the function compiled now has used
        self._constants: dict[Any, str] = {}
        self._destinations = {
            each
            for instruction in self.instructions
            for operand in instruction.operands[:1]
            for each in re.split(r"[|,\s]+", operand.strip("{} "))
        }
        self._steps = [self._translate(each) for each in self.instructions]
        self._homes: dict[str, np.dtype[Any]] = {}
        for step in self._steps:
            for register, kind in step.results:
                if register == "_":
                    continue
                home = DTYPES[kind]
                if home.itemsize != self._width(register):
                    home = np.dtype(f"{home.kind}{self._width(register)}")
                self._homes.setdefault(register, home)
                self._registers.setdefault(register, len(self._registers))
        self.segments = self._split()

    @property
    def registers(self) -> int:
        return len(self._registers)

    def register(self, name: str) -> int:
        if name not in self._registers:
            raise PtxError(f"register {name} is never written")
        return self._registers[name]

    def _width(self, register: str) -> int:
        return DTYPES[self._kinds[re.sub(r"\d+$", "", register)]].itemsize

    # Blocks

    def _split(self) -> list[Segment]:
        count = len(self.instructions)
        branches = (each for each in self.instructions if each.opcode.startswith("bra"))
        blocks = {0, *(self._labels[each.operands[0]] for each in branches)}
        blocks |= {at + 1 for at, each in enumerate(self.instructions) if each.branches}
        starts = blocks | {at for at, each in enumerate(self.instructions) if each.synchronizes}
        ordered = sorted(at for at in starts if at < count)
        number = {at: place for place, at in enumerate(ordered)}
        segments = []
        for at, end in zip(ordered, [*ordered[1:], count], strict=True):
            last = self.instructions[end - 1]
            segment = Segment(range(at, end), self.instructions[at].synchronizes, at in blocks)
            if last.branches:
                segment.steps = range(at, end - 1)
                segment.guard, segment.negated = last.guard, last.negated
                at_target = self._labels.get(last.operands[0]) if last.operands else None
                segment.target = -1 if at_target is None else number[at_target]
            segments.append(segment)
        last = len(segments) - 1
        for place in range(len(segments) - 1, -1, -1):
            if place + 1 < len(segments) and segments[place + 1].starts_block:
                last = place
            segments[place].last = last
        return segments

    def masked(self, segment: Segment) -> Callable[..., None]:
        if segment.masked is None:
            segment.masked = self._compile(segment.steps, masked=True)
        return segment.masked

    def whole(self, place: int) -> Callable[..., None]:
        """Return the function of a block, for when all threads run it."""
        segment = self.segments[place]
        if segment.whole is None:
            steps = range(segment.steps.start, self.segments[segment.last].steps.stop)
            segment.whole = self._compile(steps, masked=False)
        return segment.whole

    def _compile(self, steps: range, *, masked: bool) -> Callable[..., None]:
        self._known.clear()
        lines = [self._line(at, masked) for at in steps]
        # a line for each instruction, so that a traceback tells which one failed
        body = "\n ".join(lines) or "pass"
        source = "\n" * steps.start + "def run(S, R, m=None):\n " + body
        exec(compile(source, FILE, "exec"), self.names)
        return self.names["run"]

    def _line(self, at: int, masked: bool) -> str:
        step, instruction = self._steps[at], self.instructions[at]
        mask = ""
        if instruction.guard:
            mask = ("~" if instruction.negated else "") + self._value(instruction.guard)
        if masked:
            mask = f"m & {mask}" if mask else "m"
        arguments = [self._read(*each) for each in step.arguments]
        call = step.call.format(*arguments, mask=mask or "None")
        used = [(place, each) for place, each in enumerate(step.results) if each[0] != "_"]
        if len(step.results) == 1:
            return self._write(*step.results[0], call, mask) if used else call
        if not step.results:
            return call
        stores = (self._write(*each, f"v[{place}]", mask) for place, each in used)
        return "; ".join([f"v = {call}", *stores])

    def _write(self, register: str, kind: str, value: str, mask: str) -> str:
        home, given = self._homes[register], DTYPES[kind]
        if given.itemsize != home.itemsize:
            value = f"{value}.astype({self._constant(np.dtype(f'{given.kind}{home.itemsize}'))})"
            given = np.dtype(f"{given.kind}{home.itemsize}")
        if given != home:
            value = f"{value}.view({self._constant(home)})"
        place = f"R[{self.register(register)}]"
        self._known.add(register)
        if mask:
            value = f"keep({mask}, {value}, {place}, {self._constant(home)})"
        return f"{place} = {value}"

    def _value(self, register: str) -> str:
        place = f"R[{self.register(register)}]"
        if register in self._known:
            return place
        self._known.add(register)
        return f"known({place}, '{register}')"

    def _read(self, operand: str, kind: str) -> str:
        want = DTYPES[kind]
        if operand in _SPECIAL:
            return f"S.special['{operand}'].view({self._constant(want)})"
        if not operand.startswith("%"):
            return self._constant_of(operand, want)
        value, home = self._value(operand), self._homes[operand]
        if home == want:
            return value
        if home.itemsize > want.itemsize:
            return f"{value}.view('u{home.itemsize}').astype({self._constant(want)})"
        return f"{value}.view({self._constant(want)})"

    def _constant_of(self, text: str, dtype: np.dtype[Any]) -> str:
        if match := re.fullmatch(r"0[fd]([0-9A-Fa-f]+)", text):
            value = np.array([int(match[1], 16)], f"u{len(match[1]) // 2}")
            if value.itemsize != dtype.itemsize:
                raise NotImplementedError(f"{text} as {dtype}")
            return self._constant(value.view(dtype))
        if text == "global_smem":
            return self._constant(np.array([SHARED_BASE], dtype))
        if dtype.kind == "b":
            return self._constant(np.array([int(text, 0) != 0]))
        number = int(text.rstrip("U"), 0) & (2 ** (8 * dtype.itemsize) - 1)
        return self._constant(np.array([number], f"u{dtype.itemsize}").view(dtype))

    def _constant(self, value: Any) -> str:
        is_array = isinstance(value, np.ndarray)
        key = (value.tobytes(), value.dtype) if is_array else value
        if key not in self._constants:
            name = self._constants[key] = f"k{len(self._constants)}"
            self.names[name] = value
        return self._constants[key]

    # Instructions

    def _translate(self, instruction: _Instruction) -> _Step:
        opcode, operands = instruction.opcode, instruction.operands
        name, *parts = opcode.replace("::", "_").split(".")
        if instruction.branches:
            return _Step([], "pass", [])
        special = getattr(self, f"_translate_{name}", None)
        if special is not None:
            step = special(instruction, parts)
            if step is not None:
                return step
        try:
            found = operation(opcode)
        except NotImplementedError as error:
            raise NotImplementedError(instruction.text) from error
        results = operands[0].split("|")
        if len(found.results) == 1 and len(results) == 2:
            raise NotImplementedError(instruction.text)
        arguments = list(zip(operands[1:], found.arguments, strict=True))
        function = self._constant(found.function)
        places = ", ".join(f"{{{place}}}" for place in range(len(arguments)))
        call = "{0}" if name == "mov" else f"{function}({places})"
        return _Step(list(zip(results, found.results, strict=True)), call, arguments)

    def _translate_mov(self, instruction: _Instruction, parts: list[str]) -> _Step | None:
        """Translate what packs or unpacks registers; other moves are as other operations."""
        to, given = instruction.operands
        if to.startswith("{"):
            halves = _list(to)
            kind = f"b{int(parts[-1][1:]) // len(halves)}"
            call = f"S.split({{0}}, {len(halves)})"
            return _Step([(each, kind) for each in halves], call, [(given, parts[-1])])
        if given.startswith("{"):
            halves = _list(given)
            kind = f"b{int(parts[-1][1:]) // len(halves)}"
            places = ", ".join(f"{{{place}}}" for place in range(len(halves)))
            # a half that nothing reads need not be written
            written = self._destinations
            arguments = [(each if each in written else "-1", kind) for each in halves]
            return _Step([(to, parts[-1])], f"S.join({places})", arguments)
        return None

    def _translate_ld(self, instruction: _Instruction, parts: list[str]) -> _Step:
        to, address = instruction.operands[:2]
        base, offset = _address(address)
        registers, kind = _list(to), parts[-1]
        if parts[0] == "param":
            index = int(re.search(r"_param_(\d+)$", base)[1])
            return _Step([(registers[0], kind)], f"S.parameters[{index}]", [])
        space = self._space(instruction, parts, registers)
        size = DTYPES[kind].itemsize
        call = f"S.load_{space}({{0}}, {offset}, {size}, {len(registers)}, {{mask}})"
        if len(registers) == 1:
            call += "[0]"
        pointer = "u64" if space == "global" else "u32"
        return _Step([(each, f"u{8 * size}") for each in registers], call, [(base, pointer)])

    def _translate_st(self, instruction: _Instruction, parts: list[str]) -> _Step:
        address, given = instruction.operands[:2]
        base, offset = _address(address)
        registers = _list(given)
        space = self._space(instruction, parts, registers)
        kind = f"b{8 * DTYPES[parts[-1]].itemsize}"
        places = ", ".join(f"{{{1 + place}}}" for place in range(len(registers)))
        call = f"S.store_{space}({{0}}, {offset}, [{places}], {{mask}})"
        pointer = "u64" if space == "global" else "u32"
        return _Step([], call, [(base, pointer), *((each, kind) for each in registers)])

    def _space(self, instruction: _Instruction, parts: list[str], registers: list[str]) -> str:
        known = {"global", "shared", "v2", "v4", "b8", "b16", "b32", "b64"}
        known |= {"L1_evict_first", "L2_cache_hint"}
        vectors = [int(each[1]) for each in parts if each in ("v2", "v4")]
        if set(parts) - known or len(registers) != (vectors or [1])[0]:
            raise NotImplementedError(instruction.text)
        return "global" if "global" in parts else "shared"

    def _translate_ldmatrix(self, instruction: _Instruction, parts: list[str]) -> _Step:
        to, address = instruction.operands
        base, offset = _address(address)
        registers = _list(to)
        form = rf"ldmatrix\.sync\.aligned\.m8n8\.x{len(registers)}(\.trans)?\.shared\.b16"
        match = re.fullmatch(form, instruction.opcode)
        if match is None:
            raise NotImplementedError(instruction.text)
        transposed = match[1] is not None
        call = f"S.load_matrix({{0}}, {offset}, {len(registers)}, {transposed}, {{mask}})"
        return _Step([(each, "b32") for each in registers], call, [(base, "u32")])

    def _translate_stmatrix(self, instruction: _Instruction, parts: list[str]) -> _Step:
        address, given = instruction.operands
        base, offset = _address(address)
        registers = _list(given)
        if instruction.opcode != f"stmatrix.sync.aligned.m8n8.x{len(registers)}.shared.b16":
            raise NotImplementedError(instruction.text)
        places = ", ".join(f"{{{1 + place}}}" for place in range(len(registers)))
        call = f"S.store_matrix({{0}}, {offset}, [{places}], {{mask}})"
        return _Step([], call, [(base, "u32"), *((each, "b32") for each in registers)])

    def _translate_createpolicy(self, instruction: _Instruction, parts: list[str]) -> _Step:
        if parts != ["fractional", "L2_evict_first", "b64"]:
            raise NotImplementedError(instruction.text)
        return _Step([(instruction.operands[0], "b64")], self._constant_of("0", DTYPES["b64"]), [])

    def _translate_bar(self, instruction: _Instruction, parts: list[str]) -> _Step:
        if parts == ["warp", "sync"]:
            return _Step([], "S.synchronize_warps({mask})", [])
        if parts != ["sync"] or instruction.operands != ["0"] or instruction.guard:
            raise NotImplementedError(instruction.text)
        return _Step([], "S.barrier({mask})", [])

    def _translate_shfl(self, instruction: _Instruction, parts: list[str]) -> _Step:
        to, given, by, clamp, members = instruction.operands
        known = parts in (["sync", "bfly", "b32"], ["sync", "idx", "b32"])
        if not known or (clamp, members) != ("31", "-1") or instruction.guard or "|" in to:
            raise NotImplementedError(instruction.text)
        return _Step([(to, "b32")], f"S.{parts[1]}({{0}}, {{1}})", [(given, "b32"), (by, "u32")])

    def _translate_redux(self, instruction: _Instruction, parts: list[str]) -> _Step:
        to, given, members = instruction.operands
        if parts not in (["sync", "max", "s32"], ["sync", "max", "u32"]) or instruction.guard:
            raise NotImplementedError(instruction.text)
        return _Step([(to, parts[2])], "S.largest({0}, {1})", [(given, parts[2]), (members, "u32")])


def _address(operand: str) -> tuple[str, int]:
    base, _, offset = operand.strip("[] ").partition("+")
    return base.strip(), int(offset or 0)


def known(values: Lanes | None, register: str) -> Lanes:
    if values is None:
        raise PtxError(f"register {register} is read and was never written")
    return values


def _keep(mask: Lanes, new: Lanes, old: Lanes | None, home: np.dtype[Any]) -> Lanes:
    """Return `new` in the lanes of the mask, `old` in the others: NaN where there was none."""
    if old is None:
        old = np.full(1, 0xFF, np.uint8).repeat(home.itemsize).view(home)
    return np.where(mask, new, old)
