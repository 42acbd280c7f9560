"""Devices and hosts: a mesh over devices, functions compiled for it, and the shares and sums of several processes."""

from vitx.parallel.devices import (
    AMPERE,
    MODES,
    axis_of,
    compute_capability,
    data_parallel,
    device_memory,
    local_mesh,
    mesh,
    out_of_memory,
    pad_batch,
    per_example,
    replicate,
    shard_batch,
    sum_over_devices,
)
from vitx.parallel.processes import (
    barrier,
    gather_shares,
    initialize,
    is_first_process,
    max_over_processes,
    process_shard,
    share,
    sum_over_processes,
)
