from .scheduling_dpmsolver_sde_audiox import AudioXDPMSolverSDEScheduler

__all__ = ["AudioXDPMSolverSDEScheduler"]
