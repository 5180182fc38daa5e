-module(nats_gateway_emqx_health_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_emqx_health, [diagnose/1]).

diagnose_test_() ->
    Well = #{
        otp => 27,
        emqx => {5, 10},
        gateways => running,
        nats => nats_gateway_emqx,
        started => true,
        nif => true,
        settings => ok,
        loaded => true,
        built_in => ok
    },
    [
        ?_assertEqual(ok, diagnose(Well)),
        ?_assertEqual(ok, diagnose(Well#{emqx := {6, 0}, otp := 28}))
        | [
            ?_assertMatch({_, {match, _}}, {Wrong, matched(Text, diagnose(maps:merge(Well, Wrong)))})
         || {Wrong, Text} <- [
                {#{otp => 24}, "Erlang/OTP 24 is not supported"},
                {#{otp => 29}, "Erlang/OTP 29 is not supported"},
                {#{emqx => {5, 9}}, "EMQX 5\\.9 is not supported"},
                {#{emqx => unknown}, "version of EMQX cannot be told"},
                {#{nif => false}, "native library"},
                {#{gateways => off}, "gateway application of EMQX is not running"},
                {#{nats => undefined}, "no gateway is registered under the name nats"},
                {#{nats => emqx_gateway_nats}, "served by emqx_gateway_nats, not by this plugin"},
                {#{settings => {error, <<"drain_time: no">>}}, "nobody is let in: drain_time: no"},
                {#{started => false, nif => false, loaded => false}, "is not served: this plugin is not started"},
                {#{started => false, nif => false}, "built-in gateway: this plugin is not started"},
                {#{built_in => {open, [<<"logins">>]}}, "does not ask for logins"},
                {#{built_in => logins_lost}, "nobody is let in: were they lost"},
                %% the cause, not its consequence
                {#{gateways => off, nats => undefined}, "not running"}
            ]
        ]
    ].

matched(Pattern, {error, Text}) -> re:run(Text, Pattern).

%% Outside of EMQX there is nothing to ask: the check says so and does not crash.
health_check_test() ->
    ?assertMatch(
        {error, <<"the version of EMQX", _/binary>>}, nats_gateway_emqx_health:health_check(#{})
    ).
