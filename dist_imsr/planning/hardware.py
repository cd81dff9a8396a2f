"""Data sheets of the devices that a plan may name, and the shares of their rates that a plan counts on."""

from dataclasses import dataclass, fields, replace

from dist_imsr.checks import require


@dataclass(frozen=True)
class Hardware:
    """One device with its share of its machine; the fields are those of `HardwareConfig`.

    ``device`` is torch's name of its kind. On a CPU, ``memory`` is that of the whole machine.
    """

    device: str
    memory: int
    memory_bandwidth: float
    fp32: float
    bf16: float
    intra_node: float
    inter_node: float
    to_host: float
    host_memory: int
    latency: float = 2e-6
    overhead: float = 10e-3


_GB = 10**9

# Memory in decimal GB (devices have a little more), dense rates, NVLink and PCIe in one direction. Links, latency and
# host of a card that is sold without a machine are those of the vendor's own machine at the time.
# name: device, memory, memory_bandwidth, fp32, bf16, intra_node, inter_node, to_host, host_memory
DEVICES = {
    "cpu": Hardware("cpu", 64 * _GB, 20e9, 0.05e12, 0.05e12, 5e9, 1.25e9, 20e9, 64 * _GB),
    # Turing has no bf16; PCIe 3, 10 Gbit/s Ethernet, and the 128 GB of the paper's machine.
    "rtx2080ti": Hardware("cuda", 11 * _GB, 616e9, 13.4e12, 13.4e12, 12e9, 1.25e9, 12e9, 128 * _GB),
    # DGX-1: NVLink 2, four 100 Gbit/s cards for eight devices, PCIe 3. Volta has no bf16.
    "v100": Hardware("cuda", 32 * _GB, 900e9, 15.7e12, 15.7e12, 150e9, 6.25e9, 12e9, 512 * _GB),
    # DGX A100: NVLink 3, a 200 Gbit/s card for each device, PCIe 4.
    "a100-40": Hardware("cuda", 40 * _GB, 1555e9, 19.5e12, 312e12, 300e9, 25e9, 25e9, 1000 * _GB),
    "a100-80": Hardware("cuda", 80 * _GB, 2039e9, 19.5e12, 312e12, 300e9, 25e9, 25e9, 2000 * _GB),
    # DGX H100 and H200: NVLink 4, a 400 Gbit/s card for each device, PCIe 5.
    "h100": Hardware("cuda", 80 * _GB, 3350e9, 67e12, 989e12, 450e9, 50e9, 50e9, 2000 * _GB),
    "h200": Hardware("cuda", 141 * _GB, 4800e9, 67e12, 989e12, 450e9, 50e9, 50e9, 2000 * _GB),
}


@dataclass
class HardwareConfig:
    """Figures that replace those of the device's data sheet; bandwidths are those of one direction.

    Args:
        memory: bytes of a device.
        memory_bandwidth: bytes per second of a device.
        fp32: floating-point operations per second, without tensor cores.
        bf16: floating-point operations per second with tensor cores, dense.
        intra_node: bytes per second between devices of one machine.
        inter_node: bytes per second to other machines, for each device.
        to_host: bytes per second between device and host memory.
        host_memory: bytes of a machine.
        latency: seconds that each message of a collective costs a device, whatever its length.
        overhead: seconds of a training step besides memory traffic and arithmetic, such as kernel launches.
        memory_efficiency: share of the memory bandwidth that a plan counts on; rows are read at random.
        compute_efficiency: share of the arithmetic rate that a plan counts on.
        link_efficiency: share of the links' bandwidths that a plan counts on.
    """

    memory: int | None = None
    memory_bandwidth: float | None = None
    fp32: float | None = None
    bf16: float | None = None
    intra_node: float | None = None
    inter_node: float | None = None
    to_host: float | None = None
    host_memory: int | None = None
    latency: float | None = None
    overhead: float | None = None
    memory_efficiency: float = 0.5
    compute_efficiency: float = 0.4
    link_efficiency: float = 0.6

    def __post_init__(self) -> None:
        for field in fields(self):
            key, value = f"hardware.{field.name}", getattr(self, field.name)
            if field.name.endswith("efficiency"):
                require(0 < value <= 1, key, value, "above 0, at most 1")
            elif field.name in ("latency", "overhead"):
                require(value is None or value >= 0, key, value, "at least 0")
            else:
                require(value is None or value > 0, key, value, "above 0")

    def override(self, name: str) -> Hardware:
        """Returns a device of `DEVICES` with these figures in place of its own."""
        device = DEVICES[name]
        figures = {field.name: getattr(self, field.name, None) for field in fields(device)}
        if device.device == "cpu":  # the device's memory is the machine's
            figures["memory"] = figures["host_memory"] = figures["host_memory"] or figures["memory"]
        return replace(device, **{key: value for key, value in figures.items() if value is not None})
