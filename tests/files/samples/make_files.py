"""Makes the weights files beside it, with PyTorch: python tests/files/samples/make_files.py. tests/files/test_weights.py
holds the same formulas, so the files show that what PyTorch wrote once is still read where PyTorch is not installed."""

import os
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import torch

HERE = Path(__file__).parent


class Malicious:
    """Pickled as: call os.system with this command."""
    def __reduce__(self):
        return os.system, ("touch minifcn_was_here",)


def numbers(*shape, dtype=torch.float32):
    """0, 1/4, 2/4, ... as any float type holds them exactly."""
    count = int(torch.tensor(shape).prod())
    return (torch.arange(count) / 4).reshape(shape).to(dtype)


def main():
    base = numbers(6, 5)
    state = OrderedDict(
        conv=numbers(4, 3, 2, 2), double=numbers(3, 2, dtype=torch.float64), half=numbers(3, dtype=torch.float16),
        brain=numbers(3, dtype=torch.bfloat16), scalar=torch.tensor(7), empty=torch.zeros(0, 3),
        int32=torch.tensor([-5, 2**31 - 1], dtype=torch.int32), int16=torch.tensor([-5, 5], dtype=torch.int16),
        int8=torch.tensor([-5, 5], dtype=torch.int8), uint8=torch.tensor([0, 255], dtype=torch.uint8),
        bool=torch.tensor([True, False]), parameter=torch.nn.Parameter(numbers(2)),
        base=base, slice=base[1:5:2, 1:4], transposed=base.t(), expanded=numbers(3, 1).expand(3, 4))
    torch.save(state, HERE / "types.pth")

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4))
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(numbers(2, 3, 5, 5)).sum().backward()
    sgd.step()
    torch.save(net.state_dict(), HERE / "net.pth")
    torch.save({"model": net.state_dict(), "optimizer": sgd.state_dict(), "epoch": 3, "best": 0.5, "note": None},
               HERE / "nested.pth")
    torch.save(net.state_dict(), HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    for protocol in (0, 1, 4):
        torch.save(net.state_dict(), HERE / f"protocol{protocol}.pth", pickle_protocol=protocol)
    torch.save({"conv.weight": numbers(2), "evil": Malicious()}, HERE / "malicious.pth")

    torch.save({"weight": numbers(2, 3)}, HERE / "little.pth")
    reader, writer = torch._C.PyTorchFileReader(str(HERE / "little.pth")), torch._C.PyTorchFileWriter(str(HERE / "big.pth"))
    for name in ("data.pkl", "byteorder", "data/0"):                # the same file as a big-endian machine writes it
        record = reader.get_record(name)
        if name == "byteorder":
            record = b"big"
        elif name == "data/0":
            record = struct.pack(f">{len(record) // 4}f", *struct.unpack(f"<{len(record) // 4}f", record))
        writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    os.unlink(HERE / "little.pth")
    try:
        from safetensors.torch import save_file
    except ImportError:
        sys.exit("types.safetensors was not made: safetensors is not installed")
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, HERE / "types.safetensors")


if __name__ == "__main__":
    main()
