"""Stand-ins for what Megatron-FSDP asks of CUDA, so that its own code runs on the CPU by gloo. For tests only.

Streams and events do nothing: on the CPU every operation is done when its call returns. What gloo lacks is done before
or after: premultiplied sums, and coalesced collectives that are waited for later.
"""

import contextlib
import logging
import time

import torch


class Event:
    def __init__(self, *args, **kwargs):
        self._at = 0.0

    def record(self, stream=None):
        self._at = time.perf_counter()

    def wait(self, stream=None):
        pass

    def synchronize(self):
        pass

    def query(self):
        return True

    def elapsed_time(self, other):
        return (other._at - self._at) * 1e3


class Stream:
    def __init__(self, *args, **kwargs):
        self.device = torch.device("cpu")

    def wait_stream(self, stream):
        pass

    def wait_event(self, event):
        pass

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self):
        pass


class _Done(list):
    """The handle of collectives that are done."""

    def wait(self):
        return True


def install():
    """Put the stand-ins in place, and let the provider take the CPU, for the rest of this process."""
    stream = Stream()
    torch.cuda.current_device = lambda: 0
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.current_stream = torch.cuda.default_stream = lambda device=None: stream
    torch.cuda.Stream, torch.cuda.Event = Stream, Event
    torch.cuda.stream = contextlib.nullcontext
    torch.cuda.memory_allocated = torch.cuda.memory_reserved = lambda device=None: 0
    torch.Tensor.cuda = lambda self, *args, **kwargs: self

    from automodel_distributed_nvfsdp import nvfsdp
    from megatron_fsdp import param_and_grad_buffer as buffers

    nvfsdp.need_cuda = lambda device: None
    logging.getLogger("megatron_fsdp").setLevel(logging.ERROR)  # that the CPU is not the current CUDA device

    gather = torch.distributed.all_gather_into_tensor

    def gather_now(output_tensor, input_tensor, group=None, async_op=False):
        gather(output_tensor, input_tensor.clone(), group)  # the library's is a part of the output
        return _Done()

    @contextlib.contextmanager
    def one_by_one(group=None, device=None, async_ops=False):  # gloo mixes up tensors of several data types
        yield _Done()

    def scaled(gradient, factor, config):
        if factor is not None and not config.average_in_collective:
            gradient.mul_(factor)
        if config.average_in_collective:
            raise NotImplementedError("gloo has no ReduceOp.AVG")
        return torch.distributed.ReduceOp.SUM

    torch.distributed.all_gather_into_tensor = gather_now
    buffers._coalescing_manager = one_by_one
    buffers.gradient_reduce_preprocessing = scaled
