"""What a command's process frees is there for its next allocation, without the kernel's help; and how much it has."""

import os
import platform
import subprocess
import sys

import pytest
from testing.held import held_by

from hf_captioner.memory import memory_of

COUNTS = """
import resource, sys
import torch
from hf_captioner.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
sizes = [2**24, 3 * 2**23, 2**25] * 3  # floats: 64 to 128 MB
for size in sizes:
    torch.ones(size)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for size in sizes:
    torch.ones(size)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such parameters")
def test_large_pieces_are_used_again():
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", COUNTS, mode], check=True, capture_output=True).stdout)
        for mode in ("keep", "usual")
    }
    assert faults["usual"] > 9 * 2**14  # 64 MB are 2^14 pages of 4 kB
    assert faults["keep"] < faults["usual"] / 50


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell")
def test_memory_of_processes():
    held, _, _ = held_by(os.getpid())
    assert abs(memory_of("VmRSS") - held) < 20 and memory_of("VmHWM", os.getpid()) >= memory_of("VmRSS") - 1
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as small:
        assert 0 < memory_of("VmRSS", small.pid) < held
        small.communicate(b"\n")
    assert not memory_of("VmRSS", small.pid) > 0  # NaN: there is no such process any more
