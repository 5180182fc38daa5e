-module(nats_gateway_kv_kept_tests).

-include_lib("eunit/include/eunit.hrl").

-define(KEY, ?MODULE).

client(Fields, Config) ->
    Client = #{config => Config, listener => <<"tcp:default">>, peercert => nossl},
    Client#{connect => maps:merge(#{name => <<"n">>, user => <<"u">>, pass => <<"p">>}, Fields)}.

identity(Fields, Config) -> nats_gateway_kv_kept:identity(client(Fields, Config)).

config() -> #{kv => #{<<"b">> => <<"b/">>}, secret => <<"s">>, auth_required => false}.

%% As connections get it.
published(Config) ->
    _ = nats_gateway_connection:publish(?KEY, #{host => none, listener => l, config => Config}),
    #{config := Published} = persistent_term:get(?KEY),
    _ = persistent_term:erase(?KEY),
    Published.

off_test() ->
    [
        begin
            ?assertEqual(Config, published(Config)),
            ?assertEqual(none, identity(#{}, published(Config)))
        end
     || Config <- [(config())#{kv => off}, maps:remove(kv, config())]
    ].

%% Nothing of such a client is found or waits.
without_identity_test() ->
    Kept = nats_gateway_kv_kept:enter(none, <<"t">>),
    ?assertEqual(full, nats_gateway_kv_kept:keep(Kept, 1000)),
    ?assertNot(nats_gateway_kv_kept:is_over({'DOWN', make_ref(), process, self(), normal}, Kept)).

identity_test() ->
    Config = published(config()),
    Own = identity(#{}, Config),
    ?assertMatch(<<_:32/binary>>, Own),
    [?assertEqual(Own, identity(Fields, Config)) || Fields <- [#{name => <<"m">>}, #{sig => <<"s">>}]],
    [
        ?assertNotEqual(Own, identity(Fields, Config))
     || Fields <- [#{user => <<"v">>}, #{pass => <<"q">>}, #{jwt => <<"j">>}, #{nkey => <<"k">>}]
    ],
    [
        ?assertNotEqual(Own, nats_gateway_kv_kept:identity(maps:merge(client(#{}, Config), Other)))
     || Other <- [#{listener => l}, #{peercert => <<"c">>}, #{cookies => #{jwt => <<"j">>}}]
    ],
    ?assertNotEqual(Own, identity(#{}, published((config())#{auth_required => true}))).

%% The same settings are not stored again: a change makes the runtime scan all processes.
published_once_test() ->
    Options = #{host => none, listener => l, config => config()},
    ?assertEqual(changed, nats_gateway_connection:publish(?KEY, Options)),
    ?assertEqual(unchanged, nats_gateway_connection:publish(?KEY, Options)),
    ?assert(persistent_term:erase(?KEY)).
