"""Options of the plan."""

from gradfiltering.options import NonNegativeFloat, PositiveFloat, PositiveInt, Share, model_validator, options


@options
class Fleet:
    """The GPUs that a run is planned for.

    Attributes:
        gpus: in all; None where no fleet is planned for. Processes on CPUs count as well.
        nodes: machines that they are spread over evenly.
        peak_tflops: operations of one GPU, 10¹² a second, in the type that the models compute in; None for GPUs that
            are each as fast as the device of this process.
        utilisation: share of the peak that the work reaches.
        price_per_gpu_hour: in any currency; None where no price is given.
        network_gbit: of the slowest link between two GPUs, 10⁹ bits a second.
        latency_us: of a message between two GPUs, millionths of a second.
    """

    gpus: PositiveInt | None = None
    nodes: PositiveInt = 1
    peak_tflops: PositiveFloat | None = None
    utilisation: Share = 0.3
    price_per_gpu_hour: NonNegativeFloat | None = None
    network_gbit: PositiveFloat = 100.0
    latency_us: NonNegativeFloat = 20.0

    @model_validator(mode="after")
    def _check_nodes(self) -> "Fleet":
        if self.gpus is not None and self.gpus % self.nodes:
            raise ValueError(
                f"{self.gpus} GPUs cannot be spread evenly over {self.nodes} nodes; give a divisor of gpus"
            )
        return self


@options
class PlanSettings:
    """Use of the plan.

    Attributes:
        only: print the plan and end.
        minutes: time that the run may take; rows are drawn from the pool so that it does. None for all rows.
        fresh: measure this machine's speed anew, where the cache keeps what an earlier run measured.
        fleet: GPUs that the run's cost is estimated for.
    """

    only: bool = False
    minutes: PositiveFloat | None = None
    fresh: bool = False
    fleet: Fleet = Fleet()
