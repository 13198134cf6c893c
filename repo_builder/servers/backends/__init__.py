"""Python-based Triton backends of the names that NVIDIA's C++ backends have.

Triton's stub, one process for each model instance, appends the backend's folder to ``sys.path``, imports ``model`` from
there and uses its class ``TritonPythonModel``; its Python is isolated, so PYTHONPATH is of no use there
(https://github.com/triton-inference-server/python_backend/blob/main/src/pb_stub.cc, ``ModelContext::StubSetup``).  Such
a name, or ``tensorrt`` and ``memory``, can be anyone's.  So each ``model.py`` is written by
:mod:`repo_builder.servers.installation` and imports from a copy of this package that has a name of its own.  The
modules therefore import each other relatively and nothing else of ``repo_builder``, which the stub's Python need not
have.
"""
