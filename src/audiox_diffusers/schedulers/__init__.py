from .scheduling_dpmsolver_sde_audiox import AudioXDPMSolverSDEScheduler
from .scheduling_flow_match_audiox import AudioXFlowMatchScheduler

__all__ = ["AudioXDPMSolverSDEScheduler", "AudioXFlowMatchScheduler"]
