"""The experiments, by name."""

from chaos.experiment import Experiment
from chaos.experiments import cache_sidecar, collector, worker_death
from chaos.fleet import Fleet

EXPERIMENTS: dict[str, Experiment[Fleet]] = {
    experiment.name: experiment
    for experiment in (
        cache_sidecar.KILLED,
        cache_sidecar.HUNG,
        worker_death.BEFORE_FIRST_TOKEN,
        collector.DEAD,
        collector.SILENT,
    )
}
