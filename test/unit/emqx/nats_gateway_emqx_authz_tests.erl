%% Decisions of EMQX's authorization are remembered as EMQX's cache would.
-module(nats_gateway_emqx_authz_tests).

-include_lib("eunit/include/eunit.hrl").

-define(AUTHZ, nats_gateway_emqx_authz).
-define(CACHE, [authorization, cache]).

authz_test_() ->
    {foreach, fun nats_gateway_fake_emqx:load/0,
        fun(_) ->
            _ = erase({denied, <<"a">>}),
            _ = erase({config, ?CACHE}),
            ok = nats_gateway_fake_emqx:unload()
        end,
        [
            fun nothing_is_known_at_first/0,
            fun what_was_asked_is_known/0,
            fun each_quality_of_service_is_asked_for/0,
            fun retained_messages_are_asked_for_each_quality/0,
            fun what_is_forgotten_is_unknown/0,
            fun rules_see_no_mountpoint/0,
            fun nothing_is_remembered_where_the_cache_is_off/0,
            fun what_is_old_is_unknown/0,
            fun no_more_than_the_cache_holds_are_remembered/0,
            fun excluded_topics_are_asked_for_each_time/0
        ]}.

%% As EMQX's settings have it.
cache(Settings) ->
    _ = put({config, ?CACHE}, maps:merge(#{enable => true, ttl => 60000, max_size => 32}, Settings)),
    ?AUTHZ:batch().

new() -> ?AUTHZ:new(#{ctx => #{}, metrics => none}, #{}, <<"m/">>).

nothing_is_known_at_first() ->
    ?assertEqual(unknown, ?AUTHZ:known(<<"m/a">>, 0, cache(#{}), new())).

what_was_asked_is_known() ->
    Batch = cache(#{}),
    {allow, Allowed} = ?AUTHZ:ask(<<"m/a">>, 0, Batch, new()),
    put({denied, <<"a">>}, true),
    ?assertEqual(allow, ?AUTHZ:known(<<"m/a">>, 0, Batch, Allowed)),
    {deny, Denied} = ?AUTHZ:ask(<<"m/a">>, 0, Batch, new()),
    ?assertEqual(deny, ?AUTHZ:known(<<"m/a">>, 0, Batch, Denied)),
    ?assertEqual(unknown, ?AUTHZ:known(<<"m/b">>, 0, Batch, Denied)).

each_quality_of_service_is_asked_for() ->
    Batch = cache(#{}),
    {allow, Authz} = ?AUTHZ:ask(<<"m/a">>, 0, Batch, new()),
    ?assertEqual(unknown, ?AUTHZ:known(<<"m/a">>, 1, Batch, Authz)).

%% Rules may have conditions for both.
retained_messages_are_asked_for_each_quality() ->
    Batch = cache(#{}),
    {allow, Plain} = ?AUTHZ:ask(<<"m/a">>, 1, Batch, new()),
    ?assertEqual(unknown, ?AUTHZ:known(<<"m/a">>, {retain, 1}, Batch, Plain)),
    put({denied, <<"a">>}, true),
    {deny, Both} = ?AUTHZ:ask(<<"m/a">>, {retain, 1}, Batch, Plain),
    ?assertEqual(deny, ?AUTHZ:known(<<"m/a">>, {retain, 1}, Batch, Both)),
    ?assertEqual(allow, ?AUTHZ:known(<<"m/a">>, 1, Batch, Both)),
    ?assertEqual(unknown, ?AUTHZ:known(<<"m/a">>, {retain, 2}, Batch, Both)).

what_is_forgotten_is_unknown() ->
    Batch = cache(#{}),
    {allow, Authz} = ?AUTHZ:ask(<<"m/a">>, 0, Batch, new()),
    ?assertEqual(unknown, ?AUTHZ:known(<<"m/a">>, 0, Batch, ?AUTHZ:forget(Authz))).

%% They are written for what the client sees.
rules_see_no_mountpoint() ->
    put({denied, <<"a">>}, true),
    ?assertEqual(deny, ?AUTHZ:authorize(#{}, <<"m/a">>, new())),
    ?assertEqual(allow, ?AUTHZ:authorize(#{}, <<"m/m/a">>, new())).

known(Topics, Batch, Authz) -> [?AUTHZ:known(Topic, 0, Batch, Authz) || Topic <- Topics].

ask_all(Topics, Batch) ->
    lists:foldl(fun(Topic, Authz) -> element(2, ?AUTHZ:ask(Topic, 0, Batch, Authz)) end, new(), Topics).

nothing_is_remembered_where_the_cache_is_off() ->
    Batch = cache(#{enable => false}),
    ?assertEqual([unknown], known([<<"m/a">>], Batch, ask_all([<<"m/a">>], Batch))).

what_is_old_is_unknown() ->
    Batch = cache(#{ttl => 0}),
    ?assertEqual([unknown], known([<<"m/a">>], Batch, ask_all([<<"m/a">>], Batch))).

no_more_than_the_cache_holds_are_remembered() ->
    Batch = cache(#{max_size => 2}),
    Topics = [<<"m/a">>, <<"m/b">>, <<"m/c">>],
    ?assertEqual([allow, allow, unknown], known(Topics, Batch, ask_all([<<"m/a">>, <<"m/b">>], Batch))),
    ?assertEqual([unknown, unknown, allow], known(Topics, Batch, ask_all(Topics, Batch))).

excluded_topics_are_asked_for_each_time() ->
    Batch = cache(#{excludes => [<<"a">>]}),
    Topics = [<<"m/a">>, <<"m/b">>],
    ?assertEqual([unknown, allow], known(Topics, Batch, ask_all(Topics, Batch))).
