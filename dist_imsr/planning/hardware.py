"""What vendors say of the devices that a plan may name, and how much of it a plan counts on."""

from dataclasses import dataclass, fields, replace

from dist_imsr.checks import require

GB, GBPS, TFLOPS = 10**9, 1e9, 1e12


@dataclass(frozen=True)
class Hardware:
    """One device, its share of its machine's links, and the machine's memory; bandwidths are those of one direction.

    Args:
        device: torch's name of its kind.
        memory: bytes of the device; of the whole machine where the device is the host itself.
        memory_bandwidth: bytes a second.
        fp32: multiplications and additions a second, without tensor cores: TF32 is not counted on.
        bf16: the same with tensor cores, dense.
        intra_node: bytes a second between devices of one machine.
        inter_node: bytes a second to other machines, for each device.
        to_host: bytes a second between device and host memory.
        host_memory: bytes of a machine.
        latency: seconds that each message of an exchange costs a device, whatever its length.
        overhead: seconds of a training step that no byte and no multiplication explains: launches, reading the batch.
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


# Data sheets: memory in decimal GB (devices have a little more), dense rates, NVLink and PCIe in one direction. Where
# a card is sold without a machine, links, latency and host are those of the vendor's own machine of its day.
DEVICES = {
    "cpu": Hardware("cpu", 64 * GB, 20 * GBPS, 0.05 * TFLOPS, 0.05 * TFLOPS, 5 * GBPS, 1.25 * GBPS, 20 * GBPS, 64 * GB),
    # Turing multiplies no bf16; PCIe 3, 10 Gbit/s Ethernet, and the 128 GB of the paper's machine.
    "rtx2080ti": Hardware(
        "cuda", 11 * GB, 616 * GBPS, 13.4 * TFLOPS, 13.4 * TFLOPS, 12 * GBPS, 1.25 * GBPS, 12 * GBPS, 128 * GB
    ),
    # DGX-1: NVLink 2, four 100 Gbit/s cards for eight devices, PCIe 3. Volta multiplies no bf16.
    "v100": Hardware(
        "cuda", 32 * GB, 900 * GBPS, 15.7 * TFLOPS, 15.7 * TFLOPS, 150 * GBPS, 6.25 * GBPS, 12 * GBPS, 512 * GB
    ),
    # DGX A100: NVLink 3, a 200 Gbit/s card for each device, PCIe 4.
    "a100-40": Hardware(
        "cuda", 40 * GB, 1555 * GBPS, 19.5 * TFLOPS, 312 * TFLOPS, 300 * GBPS, 25 * GBPS, 25 * GBPS, 1000 * GB
    ),
    "a100-80": Hardware(
        "cuda", 80 * GB, 2039 * GBPS, 19.5 * TFLOPS, 312 * TFLOPS, 300 * GBPS, 25 * GBPS, 25 * GBPS, 2000 * GB
    ),
    # DGX H100 and H200: NVLink 4, a 400 Gbit/s card for each device, PCIe 5.
    "h100": Hardware(
        "cuda", 80 * GB, 3350 * GBPS, 67 * TFLOPS, 989 * TFLOPS, 450 * GBPS, 50 * GBPS, 50 * GBPS, 2000 * GB
    ),
    "h200": Hardware(
        "cuda", 141 * GB, 4800 * GBPS, 67 * TFLOPS, 989 * TFLOPS, 450 * GBPS, 50 * GBPS, 50 * GBPS, 2000 * GB
    ),
}


@dataclass
class HardwareConfig:
    """Figures in the place of those that the device's data sheet tells; bandwidths are those of one direction.

    Args:
        memory: bytes of a device.
        memory_bandwidth: bytes a second of a device.
        fp32: multiplications and additions a second, without tensor cores.
        bf16: the same with tensor cores.
        intra_node: bytes a second between devices of one machine.
        inter_node: bytes a second to other machines, for each device.
        to_host: bytes a second between device and host memory.
        host_memory: bytes of a machine.
        latency: seconds that each message of an exchange costs a device, whatever its length.
        overhead: seconds of a training step that no byte and no multiplication explains.
        memory_efficiency: the share of the memory's bandwidth that a plan counts on; rows are read at random.
        compute_efficiency: the share of the rate of multiplications that a plan counts on.
        link_efficiency: the share of the links' bandwidths that a plan counts on.
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
            value, free = getattr(self, field.name), field.name in ("latency", "overhead")
            if field.name.endswith("efficiency"):
                require(0 < value <= 1, f"hardware.{field.name}", value, "above 0, at most 1")
            elif value is not None:
                least = "at least 0" if free else "above 0"
                require(value >= 0 if free else value > 0, f"hardware.{field.name}", value, least)

    def of(self, name: str) -> Hardware:
        """A device with these figures in the place of its own.

        Args:
            name: of `DEVICES`.

        Returns:
            The device as its data sheet has it, where nothing is said here.
        """
        own = DEVICES[name]
        told = {field.name: getattr(self, field.name, None) for field in fields(own)}
        if own.device == "cpu":  # the device's memory is the machine's
            whole = told["host_memory"] or told["memory"]
            told |= {"memory": whole, "host_memory": whole}
        return replace(own, **{key: value for key, value in told.items() if value is not None})
