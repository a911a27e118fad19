"""The run as the monitor sees it: trainer, module, optimizer, processes, and refusals."""
