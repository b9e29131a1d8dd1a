"""Plans to make in tests: a request, and the speed of a steady machine."""

from gradfiltering.gradients.memory import ChunkMemory
from gradfiltering.models.lora import LoraSettings
from gradfiltering.planning import adapter_plan, run_speed, stored_calibration
from gradfiltering.planning.calibration import MeasuredWork
from gradfiltering.planning.plan_request import PlanRequest
from gradfiltering.planning.plan_settings import PlanSettings

RATES = {"gradients": 1e9, "losses": 3e9, "tuning": 2e9, "answers": 4e9}  # operations per second
WANTED = PlanSettings(only=True)
LORA = LoraSettings(rank=2, alpha=4, target_modules="all-linear", init_b_std=0.05)


def plan_request(context, *requests, target=None):
    return PlanRequest(frozenset(requests), context, 3, len(context.dataset), target, {})


def check_at_once(trained_ensemble):
    trained_ensemble.engine.to(trained_ensemble.device)
    return 0.0


def steady_machine(monkeypatch, rates):
    """Give the planner a machine with a speed for each kind of work, that needs no time for an update."""
    monkeypatch.setattr(adapter_plan, "time_gradients", lambda *_: rates["gradients"])
    monkeypatch.setattr(run_speed, "time_answers", lambda *_: rates["answers"])
    for kind in ("losses", "tuning"):
        measured_work = MeasuredWork(rates[kind], ChunkMemory(0, 1000, 1, 600))
        monkeypatch.setattr(run_speed, f"measure_{kind}", lambda *_, measured_work=measured_work: measured_work)
    monkeypatch.setattr(adapter_plan, "time_update", lambda *_: 0.0)
    monkeypatch.setattr(adapter_plan, "time_engine", check_at_once)
    monkeypatch.setattr(adapter_plan, "time_storing", lambda *_: 0.0)
    monkeypatch.setattr(stored_calibration, "describe_machine", lambda device: {"host": "steady"})
