%% A release has one version, whichever file it is read from.
-module(nats_gateway_release_tests).

-include_lib("eunit/include/eunit.hrl").

one_version_test() ->
    {ok, Cargo} = file:read_file("Cargo.toml"),
    {match, [Version]} = re:run(
        Cargo, "(?m)^version = \"(.*)\"$", [{capture, all_but_first, list}]
    ),
    {ok, [{application, nats_gateway, Properties}]} =
        file:consult("erlang_src/nats_gateway.app.src"),
    ?assertEqual(Version, proplists:get_value(vsn, Properties)).
