"""Load generation and measurement: what ``python -m client.bench`` and ``client.run_load`` are made of.

::

    schedule          when requests are to be sent        bodies            what is sent: tensors, made once
    delivery          how: HTTP or gRPC, shared memory    prepare           from tensors to what workers are given
    shared_memory     regions that the server can read    device_memory     those of a GPU
    grpc_messages     gRPC's messages
    workers           the worker processes from outside   engine            a worker: its loop, clock and records
    connections       its sockets, and TLS                http1, http2      what the bytes on them mean
    statistics        what the records say                histogram         HdrHistogram's format
    server_statistics what the server says                server_usage      what its processes and GPUs used
    check             are the answers sound               floor             against a server that does nothing
    verdict           may the result be believed          result            all of it as one value, and as JSON
    run               one whole run                       report            tables, lines, CSV;  html, plots: the page
"""
