"""Load generation and measurement: what ``python -m client.bench`` and ``client.run_load`` are made of.

::

    plan              what a run is to do               scenario           MLPerf's ways to send
    schedule          when requests are to be sent      delivery           how: HTTP or gRPC, shared memory
    bodies            what is sent: tensors, made once  target             where it is sent
    prepare           from tensors to what workers are given: bytes
    shared_memory     regions that the server can read  device_memory      those of a GPU
    grpc_messages     gRPC's messages                   raw_tensors        tensors as their bytes are in these
    workers           the worker processes from outside records            what is said between them and a worker
    engine            a worker: its loop and clock      connections        its sockets, and TLS
    channel           a connection as the engine has it http1, http2       what the bytes on it mean
    answers           where an answer of HTTP/1.1 ends  check              are the answers sound
    statistics        what the records say              histogram          HdrHistogram's format
    server_statistics what the server says              account            that beside what the records say
    server_usage      what the server used              server_process, server_metrics: its processes, its GPUs
    floor             against floor_server, a server that does nothing
    verdict           may the result be believed        environment        where it was measured
    run               one whole run                     level              one of its loads
    result            all of it as one value, as JSON   session            a run of the command line
    observer          who is told of a run meanwhile    live               what is shown of it on a terminal
    interrupts        what a Ctrl-C does meanwhile
    report            tables, lines, CSV                html, plots        the page
    comparison        results side by side
"""
