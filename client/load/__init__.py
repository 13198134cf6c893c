"""Load generation and measurement: what ``python -m client.bench`` and ``client.run_load`` are made of.

::

    schedule          when requests are to be sent        engine      a worker process: sockets, clocks, records
    bodies            what is sent, built once            workers     the worker processes, seen from outside
    statistics        what the records say                histogram   HdrHistogram's format
    server_statistics what the server says                floor       the generator against a server that does nothing
    verdict           may the result be believed          result      all of it as one value, and as JSON
    run               one whole run                       report      tables, lines, CSV;  html, plots: the page
"""
