"""Plans to make in tests: a request, and the speed of a steady machine."""

from gradfiltering.models.lora import LoraSettings
from gradfiltering.planning.plan_settings import PlanSettings
from gradfiltering.planning.planner import PlanRequest

RATES = {"gradients": 1e9, "losses": 3e9, "tuning": 2e9, "answers": 4e9}  # operations per second
WANTED = PlanSettings(only=True)
LORA = LoraSettings(rank=2, alpha=4, target_modules="all-linear", init_b_std=0.05)


def plan_request(context, *requests, target=None):
    return PlanRequest(frozenset(requests), context, 3, len(context.dataset), target, {})


def check_at_once(trained_ensemble):
    trained_ensemble.engine.to(trained_ensemble.device)
    return 0.0
