%% A directory that is gone after the test.
-module(nats_gateway_test_directory).

-export([in/1]).

%% The function is called with one that gives the path of a name in the directory.
in(Fun) ->
    Directory = filename:join([
        filename:basedir(user_cache, "nats_gateway_test"),
        integer_to_list(erlang:unique_integer([positive])) ++ os:getpid()
    ]),
    ok = filelib:ensure_dir(filename:join(Directory, "x")),
    try
        Fun(fun(Name) -> filename:join(Directory, Name) end)
    after
        file:del_dir_r(Directory)
    end.
