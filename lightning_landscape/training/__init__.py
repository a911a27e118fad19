"""The run as the monitor sees it: trainer, module, optimizer, processes, and what cannot be measured."""
