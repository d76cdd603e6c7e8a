"""Many adapters beside one frozen base: each row of a batch has the adapter of its task, or none.

The paper's section 4.2 names the limit that this removes: with B A merged into W0, a batch serves a single task. Here
the pairs stay beside the base, and one forward pass serves every task of the batch:

    bank = AdapterBank(model)                         a plain base model, which stays as it is to the last bit
    bank.add("e2e", folder)                           of save_lora or of PEFT; ranks and targets differ as they like
    with bank.rows(["e2e", None, "dart"]):            None is the base
        model(**batch)                                or model.generate, or the search of tasks/e2e/beam_search.py
    bank.classify(["mrpc", "mnli", None], batch)      each row's logits, by the head of its own task
    bank.remove("e2e"); bank.detach()                 one adapter less; the plain model, without a hook

Rows side by side with one adapter are a group. The base's matrix sees the whole batch, as ever. Beside it the A and B
of the groups are stacked, lower ranks filled up with zeros, and multiplied in two batched products. The stacks are made
once for a batch, not for each token. Punica (arXiv:2310.18547) and S-LoRA (arXiv:2311.03285) do it on GPUs.

Outside of `rows` the model is the plain base. Threads may use one bank, each with `rows` of its own: a thread that is
started within the block does not have the block's rows.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import MethodType
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapter_files import base_fingerprint, inside
from batch_rows import Rows, bound, rows_of
from families import family_of, head_parameters
from lora import require_plain
from serving.reading import Adapter, Pair, matrices, output_matrix, read_adapter

_with_a_bank: WeakSet[nn.Module] = WeakSet()


class AdapterBank:
    """Adapters by name, beside one base model and never in it."""

    def __init__(self, model: nn.Module):
        """ValueError if the model is not plain, is in a wrapper, is of no known family, or has a bank already."""
        require_plain(model)
        if inside(model) is not model:
            raise ValueError(
                f"expected the model itself, found it in a {type(model).__name__}: wrap none around a bank"
            )
        shared = family_of(model).projects_positions
        if model in _with_a_bank:
            raise ValueError("expected a model without a bank, found one that has one; detach() that first")
        _with_a_bank.add(model)
        self.model = model
        self._adapters: dict[str, Adapter] = {}
        self._fingerprints: dict[frozenset, str] = {}  # of the base, less the parameters in the key
        self._batches: Counter[Adapter] = Counter()  # that use an adapter now
        self._lock = threading.RLock()
        self._classifying = threading.Lock()  # one call at a time: the first to end would give the others dropout
        self._matrices, self._output = matrices(model), output_matrix(model)
        head = dict.fromkeys(name.rpartition(".")[0] for name in head_parameters(model))
        self._undo = [model.base_model.register_forward_pre_hook(self._count_rows(), with_kwargs=True).remove]
        self._undo += [self._matrices[name].register_forward_hook(self._own_head(name)).remove for name in head]
        self._beside: set[str] = set()  # the matrices at which pairs are added
        self._replace_method(model, "generate", self._generate)
        for module in model.modules() if shared else ():
            self._replace_method(module, shared, self._positions)

    @property
    def names(self) -> list[str]:
        """The adapters that are there, in the order in which they came."""
        return list(self._adapters)

    def add(self, name: str, folder: str | Path) -> None:
        """Read the adapter in the folder; ValueError if the name is taken or the folder is not for this base."""
        with self._lock:
            if not isinstance(name, str) or not name or name in self._adapters:
                others = ", ".join(self._adapters) or "none yet"
                raise ValueError(f"expected a new name ({others}), found {name!r}; replace(name, folder) changes one")
            self._put(name, folder)

    def replace(self, name: str, folder: str | Path) -> None:
        """Read the folder in place of the adapter of that name, which stays if the folder is refused."""
        with self._lock:
            self._unused(name)
            self._put(name, folder)

    def remove(self, name: str) -> None:
        """Forget an adapter; ValueError if there is none of that name, or a batch uses it."""
        with self._lock:
            del self._adapters[self._unused(name)]

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """The adapter of each row, None for the base, of any batch or generation in the block.

        Raises ValueError for an empty batch and an unknown name; a batch of another number of rows is refused when it
        comes. `generate` may make several beams of each row, and a search may drop rows (`batch_rows.py`).
        """
        with self._lock:
            owners = self._owners(names)
            self._batches.update(set(owners))
        try:
            with bound(Rows(self, owners)):
                yield
        finally:
            with self._lock:
                self._batches.subtract(set(owners))
                self._batches += Counter()  # forget those at zero

    def classify(self, names: Sequence[str | None], batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Each row's logits (classes of its task,), without dropout; `batch` holds the encoder's inputs.

        A row without an adapter, or whose adapter trained no head, has the base's. Raises ValueError as `rows`.
        """
        if self._output is None:
            raise ValueError(f"expected an encoder with a head, found {type(self.model).__name__}; use rows(names)")
        with self._classifying, self.rows(names), torch.no_grad():
            was_training = self.model.training
            self.model.eval()
            try:
                rows = rows_of(self)
                rows.memo["logits"] = []
                self.model(**{key: value for key, value in batch.items() if key != "labels"})
                return rows.memo["logits"]
            finally:
                self.model.train(was_training)

    def detach(self) -> None:
        """Take the bank off the model, which is the plain one again; ValueError while a batch uses the bank."""
        with self._lock:
            if self._batches:
                raise ValueError("expected no batch to use the bank, found one that does; detach after its block")
            while self._undo:
                self._undo.pop()()
            self._adapters.clear()
            _with_a_bank.discard(self.model)

    # Adapters --------------------------------------------------------------------------------------------------------

    def _put(self, name: str, folder: str | Path) -> None:
        self._attached()
        self._adapters[name] = adapter = read_adapter(Path(folder), self.model, self._fingerprint)
        for matrix in adapter.pairs.keys() - self._beside:
            self._undo.append(self._matrices[matrix].register_forward_hook(self._add_update(matrix)).remove)
            self._beside.add(matrix)

    def _attached(self) -> None:
        if not self._undo:
            raise ValueError("expected a bank on its model, found one that was detached; make a new AdapterBank(model)")

    def _fingerprint(self, without: frozenset) -> str:
        if without not in self._fingerprints:
            self._fingerprints[without] = base_fingerprint(self.model, without)
        return self._fingerprints[without]

    def _known(self, name: str) -> Adapter:
        if not isinstance(name, str) or name not in self._adapters:
            raise ValueError(
                f"no adapter is called {name!r}; the adapters are {', '.join(self._adapters) or 'none yet'}"
            )
        return self._adapters[name]

    def _unused(self, name: str) -> str:
        if self._batches[self._known(name)]:
            raise ValueError(f"expected {name!r} to be in no batch, found one that uses it; change it after its block")
        return name

    def _owners(self, names: Sequence[str | None]) -> tuple[Adapter | None, ...]:
        self._attached()
        if not isinstance(names, list | tuple) or not names:
            raise ValueError(f"expected a list with the name of each row's adapter or None, found {names!r}")
        return tuple(name if name is None else self._known(name) for name in names)

    # What hangs on the model. These are functions, which a copy of the model shares, and not methods of the bank. -----

    def _replace_method(self, module: nn.Module, name: str, method: Callable) -> None:
        """Let the module's own method go through `method(plain method, rows, ...)` where rows are bound."""
        if not hasattr(module, name):
            return

        def through(module: nn.Module, *inputs: Any, **options: Any) -> Any:
            plain, rows = MethodType(getattr(type(module), name), module), rows_of(self)
            return plain(*inputs, **options) if rows is None else method(plain, rows, *inputs, **options)

        setattr(module, name, MethodType(through, module))
        self._undo.append(lambda: delattr(module, name))

    def _count_rows(self) -> Callable:
        def hook(body: nn.Module, inputs: tuple, options: dict) -> None:
            if rows := rows_of(self):
                rows.require(_number(*inputs, options.get("input_ids"), options.get("inputs_embeds")))

        return hook

    def _add_update(self, name: str) -> Callable:
        def hook(matrix: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            rows, x = rows_of(self), inputs[0]
            if rows is None:
                return
            rows.require(len(x))
            if stacks := _stacks(rows, name, x.shape[-1], output):
                A, B = stacks  # (groups, d_in, k) and (groups, k, d_out)
                low = x.to(output.dtype).reshape(len(A), -1, x.shape[-1]) @ A
                output.view(len(A), -1, output.shape[-1]).baddbmm_(low, B)

        return hook

    def _own_head(self, name: str) -> Callable:
        def hook(matrix: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
            if (rows := rows_of(self)) is None:
                return None
            rows.require(len(output))
            by_row = list(output)
            for owner in set(rows.owners) - {None}:
                if name in owner.heads:
                    places = [place for place, other in enumerate(rows.owners) if other is owner]
                    x = inputs[0][places]
                    head = (part.to(x) for part in owner.heads[name])  # the model may have been moved or cast since
                    for place, own in zip(places, F.linear(x, *head), strict=True):
                        by_row[place] = own
            if name == self._output and "logits" in rows.memo:
                rows.memo["logits"] = by_row
                return None
            if len(sizes := {len(row) for row in by_row}) > 1:
                raise ValueError(
                    f"expected heads of one size, found {sorted(sizes)} classes; bank.classify(names, batch)"
                )
            return torch.stack(by_row)

        return hook

    def _generate(self, plain: Callable, rows: Rows, *inputs: Any, **options: Any) -> Any:
        given = (options.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))
        rows.require(_number(*inputs[:1], *given))
        with bound(replace(rows, side_by_side=True)):
            return plain(*inputs, **options)

    def _positions(self, plain: Callable, rows: Rows, query: Tensor, key: Tensor, *others: Any) -> Tensor:
        """DeBERTa's bias for relative positions, which are the same for all rows: each adapter projects them anew.

        `query` and `key` are (rows * heads, tokens, d / heads).
        """
        number, bias = len(rows.owners), None
        query, key = (part.unflatten(0, (number, -1)) for part in (query, key))
        for owner in dict.fromkeys(rows.owners):
            places = [place for place, other in enumerate(rows.owners) if other is owner]
            with bound(Rows(self, (owner,))):
                own = plain(query[places].flatten(0, 1), key[places].flatten(0, 1), *others)
            own = own.unflatten(0, (len(places), -1))
            bias = own.new_empty(number, *own.shape[1:]) if bias is None else bias
            bias[places] = own
        return bias.flatten(0, 1)


def _number(*inputs: Tensor | None) -> int:
    """The rows of the first input that is there; where there is none, `generate` starts one row by itself."""
    return next((len(one) for one in inputs if one is not None), 1)


def _groups(rows: Rows) -> list[Adapter | None]:
    """The owner of each group of rows side by side; of each row, where the groups differ in size."""
    groups = [(owner, len([*same])) for owner, same in groupby(rows.owners)]
    same_size = len({size for _, size in groups}) == 1
    return [owner for owner, _ in groups] if same_size else [*rows.owners]


def _stacks(rows: Rows, name: str, d_in: int, output: Tensor) -> tuple[Tensor, Tensor] | None:
    """A (groups, d_in, k) and scale times B (groups, k, d_out) of a matrix; None if no row has a pair there."""
    key = name, output.dtype
    if key not in rows.memo:
        rows.memo[key] = _stack([owner and owner.pairs.get(name) for owner in _groups(rows)], d_in, output)
    return rows.memo[key]


@torch.inference_mode(False)
@torch.no_grad()
def _stack(pairs: list[Pair | None], d_in: int, output: Tensor) -> tuple[Tensor, Tensor] | None:
    if not any(pairs):
        return None
    k = max(len(pair.A) for pair in pairs if pair)
    A, B = (torch.zeros(len(pairs), k, size, device=output.device) for size in (d_in, output.shape[-1]))
    for place, pair in enumerate(pairs):
        if pair:
            A[place, : len(pair.A)] = pair.A
            for rows, columns, block in pair.blocks:
                B[place, columns, rows] = block
            B[place] *= pair.scale
    return A.to(output.dtype).transpose(1, 2), B.to(output.dtype)
