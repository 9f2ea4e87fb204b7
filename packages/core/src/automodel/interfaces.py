"""What the providers of each kind return, as protocols: a plugin needs no base class of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup

Sample: TypeAlias = Mapping[str, Any]
"""One row, ready for the collate function. Text models: `input_ids` and `labels`, sequences of `num_tokens` integers
where a label of -100 carries no loss. Labels are not shifted: `labels[i]` is `input_ids[i]` or -100."""

Batch: TypeAlias = "dict[str, Tensor]"
"""What a collate function returns: the model's keyword arguments, and `labels_BL` (int64, -100 where there is no
loss, not shifted). B rows (samples), L positions."""

Collate: TypeAlias = Callable[[Sequence[Sample]], Batch]

Loss: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""`loss(logits_NV, labels_N)`: the SUM of the loss over N label positions (no -100 among them), a float32 scalar.

The logits need not be contiguous: they may be laid out by columns."""


DocumentInputs: TypeAlias = "Callable[[dict[str, Any]], tuple[dict[str, Any], Tensor | None]]"
"""Documents that lie end to end, as a model's forward takes them.

Given are the arguments that transformers' flash attention takes: one row `input_ids` (1, T), `position_ids` that begin
with 0 in each document, `cu_seq_lens_q` and `cu_seq_lens_k` (int32, the first position of each document, and T),
`max_length_q` and `max_length_k` (the longest document). They are on the CPU: looking at values waits for no device.
Returned are the arguments of forward, whose tensors core moves to the device; and, if fewer than T positions are to be
computed, which of these each of the T is (T)."""


class ModelSource(Protocol):
    """What a model provider returns: a model that is known but not loaded, so that data can be checked first."""

    @property
    def name(self) -> str:
        """How people call it: a Hub id or a directory."""

    def at(self, directory: Path) -> ModelSource:
        """The model that `save_pretrained` has written to a directory, with the options of this one."""

    def load_processor(self) -> Any:
        """Load the tokenizer, or the processor of a model that reads more than text.

        Raises:
            InputError: the location has none.
        """

    def load_module(self, device: torch.device) -> nn.Module:
        """Load the model on the device, in training dtype.

        The module's forward takes a batch's tensors by name and returns an object with `logits` (B, L, V); it has
        `save_pretrained(directory, state_dict=...)`, as transformers and peft models do, which writes in whichever
        process calls it. If its forward has a parameter `logits_to_keep` (a 1-D index tensor into L), core uses it to
        compute only the logits it needs.

        Raises:
            InputError: the location does not hold such a model.
        """

    def empty_module(self, device: torch.device) -> nn.Module:
        """Make the module that `load_module(device)` gives, but on the meta device: shapes and dtypes, no values.

        Raises:
            InputError: the location does not hold such a model, or it cannot be made without its values.
        """

    def load_weights(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Give the pretrained values to a module of `empty_module` that has been given memory.

        Args:
            module: the one that `empty_module` made; its submodules may be adapted and laid out since.
            tensors: its parameters and persistent buffers by the names they had, to be filled in place. They may be
                DTensors, of which this process reads only its part. All processes call this together.
        """


@runtime_checkable
class PaddingFree(Protocol):
    """A model source whose models can read documents that lie end to end, as `training.padding_free` asks for."""

    def document_inputs(self, module: nn.Module) -> DocumentInputs | None:
        """How they are told to this module, as loaded and adapted; None if it cannot read them."""


@runtime_checkable
class CollatingDataset(Protocol):
    """A data set whose samples are no plain `input_ids` and `labels`: it says how they become a micro-batch."""

    def default_collate(self, processor: Any) -> Collate:
        """Return the collate function for where `dataloader.collate_fn` says nothing; it can be pickled."""


class Peft(Protocol):
    """What a PEFT provider returns: a change to a model that leaves most of its parameters frozen."""

    def apply(self, module: nn.Module) -> nn.Module:
        """Return the model with adapters, the only parameters that require a gradient.

        Raises:
            InputError: the targets match nothing in this model; lists what there is.
        """

    def load(self, module: nn.Module, directory: Path) -> None:
        """Give the adapters of a module that `apply` made the values that `save_pretrained` has written.

        Parameters may be DTensors; all processes call this together.

        Raises:
            InputError: they do not fit, or the file is damaged.
        """

    def merge(self, module: nn.Module, directory: Path) -> nn.Module:
        """Add an adapter that `save_pretrained` has written to a model without adapters, in place; returns it.

        The sum is made, and the model then is, in the wider of the data types of model and adapter.

        Raises:
            InputError: the adapter does not fit, is damaged, or holds numbers that are not finite.
        """


class Loader(Protocol):
    """What a data loader provider returns."""

    @property
    def samples_per_turn(self) -> int:
        """Samples that all processes together take for one micro-batch each."""

    def micro_batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield this rank's micro-batches of an epoch, from the global sample position `start`."""

    def num_micro_batches(self) -> int | None:
        """Micro-batches of one epoch on the rank that has most, or None where the length is not known."""

    def state_dict(self) -> dict[str, Any]:
        """What it needs, besides epoch and sample position, to go on exactly where it is. JSON values only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""


class Parallelism(Protocol):
    """What a parallelism provider returns: how the model is laid over the processes.

    torch.distributed is initialised before it is made, unless the run has one process.
    """

    @property
    def dp_group(self) -> ProcessGroup | None:
        """The processes that train on different samples, this one among them; None if it is alone."""

    @property
    def cp_group(self) -> ProcessGroup | None:
        """The processes that hold different positions of the same samples; None if this one is alone."""

    @property
    def splits_positions(self) -> bool:
        """Whether processes share out the positions of a row, so that rows must stay as they are, with padding."""

    @property
    def shards_parameters(self) -> bool:
        """Whether processes hold parts of parameters.

        If so, the model is made on the meta device, and each process reads only its part of the weights.
        """

    @property
    def parameter_device(self) -> torch.device:
        """Where parameters lie between uses: this process's device, or the CPU if they are offloaded."""

    def parallelize(self, module: nn.Module) -> nn.Module:
        """Lay out the model, in place, and return what is called in the forward pass.

        That is the model itself, or a wrapper that keeps it as its attribute `module` and passes arguments on.

        Names of parameters, and the modules that own them, stay as they are. A module that `shards_parameters` comes
        with meta tensors wherever its values are not known yet; they are given memory and values afterwards.

        Parameters may become DTensors. One whose parts are not those that torch would make says which it has as torch's
        distributed checkpoints ask: by `__create_chunk_list__` and `__create_write_items__` of its local tensor. The
        values of a checkpoint are written into the parameters in place, and then the module's hooks of
        `load_state_dict` are called.

        Gradients are averaged over `dp_group` and `cp_group`; core multiplies the loss by their sizes.

        It keeps no reference to a module: one that was loaded to be verified would stay in memory.

        Raises:
            InputError: the model cannot be laid out so.
        """

    def shard_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the optimizer that steps the parameters as they are laid out: often the one given."""

    def local_part(self, inputs: Batch, targets_BL: Tensor) -> tuple[Batch, Tensor]:
        """This process's positions of a micro-batch's model inputs and shifted labels: all, without `cp_group`."""

    def micro_batch(self, module: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
        """The context of the forward and backward of one micro-batch. Only the last of a step averages gradients.

        Args:
            module: what `parallelize` returned. It may have laid out others since, which are only evaluated: a
                checkpoint is loaded as a second model, to be verified.
            is_last: of the step.
        """


class Launcher(Protocol):
    """What a launcher provider returns: how a run is handed to a scheduler."""

    def script(self, command: Sequence[str], files: Mapping[str, str]) -> str:
        """What is submitted, as text.

        Args:
            command: the words after `automodel`.
            files: the text of the recipes by path, as the command names them.
        """

    def submit(self, script: str, directory: Path) -> str:
        """Submit it, keeping what must be kept in `directory`, and return what the scheduler says.

        Raises:
            InputError: there is no such scheduler here.
            RunError: it refused.
        """


@dataclass
class Run:
    """What life-cycle hooks may know of the run. `config` is the resolved recipe with secrets removed."""

    name: str
    directory: Path
    config: Mapping[str, Any]
    step: int = 0
    max_steps: int | None = None
    num_parameters: int = 0
    num_trainable_parameters: int = 0
    summary: dict[str, float] = field(default_factory=dict)
