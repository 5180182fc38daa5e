-module(nats_gateway_monitor_tests).

-include("nats_gateway_census.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(BIND, {{127, 0, 0, 1}, 8222}).

gateway() ->
    #{
        config => nats_gateway_file:defaults(),
        listeners => [
            #{
                name => <<"tcp:default">>,
                type => tcp,
                bind => {{127, 0, 0, 1}, 4222},
                max_connections => infinity
            },
            #{
                name => <<"wss:\"a\\b\"">>,
                type => wss,
                bind => {{127, 0, 0, 1}, 8443},
                max_connections => 10
            }
        ],
        started => erlang:system_time(millisecond) - 61000,
        health => fun() -> ok end
    }.

answer(Path) -> answer(Path, #{}).

answer(Path, Query) ->
    {Status, _, Body} = nats_gateway_monitor:answer({Path, Query}, {#{}, ?BIND, gateway()}),
    {Status, iolist_to_binary(Body)}.

refused(Path, Query) ->
    try
        answer(Path, Query)
    catch
        throw:{bad_request, Text} -> iolist_to_binary(Text)
    end.

connz(Options) ->
    Defaults = #{sort => cid, offset => 0, limit => 1024, state => open, subs => none, auth => false},
    nats_gateway_monitor_facts:connz(maps:merge(Defaults, Options), gateway()).

cids(Options) ->
    #{connections := Connections} = connz(Options),
    [Cid || #{cid := Cid} <- Connections].

with_clients_test_() ->
    {setup,
        fun() ->
            _ = persistent_term:erase(nats_gateway_census),
            {ok, Census} = nats_gateway_census:start_link(),
            true = unlink(Census),
            Clients = [
                client(1, #{messages_sent => 5, subscriptions => 1, octets_sent => 1, rtt => 312_999}, <<"b">>),
                client(2, #{messages_sent => 9, subscriptions => 3, pending => 7, rtt => 52_000_100}, <<"a">>),
                client(3, #{messages_received => 4, octets_received => 8}, <<"b">>)
            ],
            {Census, Clients}
        end,
        fun({Census, Clients}) ->
            [exit(Pid, kill) || Pid <- Clients],
            gen_server:stop(Census)
        end,
        [
            fun sorted/0,
            fun parts_of_the_list/0,
            fun filtered/0,
            fun with_subscriptions/0,
            fun names_only_where_asked_for/0,
            fun round_trips/0,
            fun over_tls/0,
            fun accounts/0,
            fun accounts_with_statistics/0,
            fun all_that_is_subscribed/0,
            fun sums/0,
            fun metrics/0,
            fun mailboxes/0
        ]}.

%% Answers as a connection does.
client(Cid, Figures, User) ->
    Self = self(),
    Pid = spawn(fun() ->
        ok = nats_gateway_census:enter(Cid, <<"tcp:default">>, #{}),
        ok = nats_gateway_census:report(<<"$G">>, Figures),
        Self ! {self(), there},
        answering(Cid, Figures, User)
    end),
    receive
        {Pid, there} -> Pid
    end.

answering(Cid, Figures, User) ->
    receive
        {'$gen_call', From, {describe, What}} ->
            Subscriptions =
                case What of
                    figures -> [];
                    subscriptions -> subscriptions(Cid)
                end,
            Description = (of_jwt_and_tls(Cid))#{
                peername => {{127, 0, 0, 1}, 4000 + Cid},
                transport => tcp,
                name => <<"c", (integer_to_binary(Cid))/binary>>,
                user => User,
                account => <<"$G">>
            },
            gen_server:reply(From, {ok, Figures, Description, Subscriptions}),
            answering(Cid, Figures, User)
    end.

%% The second came with both.
of_jwt_and_tls(2) ->
    #{
        jwt => <<"ey">>,
        issuer_key => <<"AISSUER">>,
        name_tag => <<"ann">>,
        tags => [<<"t:1">>],
        tls => #{version => <<"1.3">>, cipher_suite => <<"TLS_AES_128_GCM_SHA256">>}
    };
of_jwt_and_tls(_) ->
    #{}.

subscriptions(Cid) ->
    [
        #{sid => integer_to_binary(N), subject => Subject, queue_group => Group, delivered => N, max => Max}
     || {N, Subject, Group, Max} <- lists:sublist(
            [{1, <<"a.*">>, undefined, infinity}, {2, <<"a.b">>, <<"q">>, 5}, {3, <<"c">>, undefined, infinity}],
            maps:get(Cid, #{1 => 1, 2 => 3, 3 => 0})
        )
    ].

sorted() ->
    [
        ?assertEqual({Sort, Expected}, {Sort, cids(#{sort => Sort})})
     || {Sort, Expected} <- [
            {cid, [1, 2, 3]},
            {start, [1, 2, 3]},
            {subs, [2, 1, 3]},
            {pending, [2, 1, 3]},
            {msgs_to, [2, 1, 3]},
            {msgs_from, [3, 1, 2]},
            {bytes_to, [1, 2, 3]},
            {bytes_from, [3, 1, 2]},
            {rtt, [2, 1, 3]}
        ]
    ].

parts_of_the_list() ->
    [
        begin
            #{total := 3, num_connections := N} = connz(#{offset => Offset, limit => Limit}),
            ?assertEqual({Offset, Limit, Cids}, {Offset, Limit, cids(#{offset => Offset, limit => Limit})}),
            ?assertEqual(length(Cids), N)
        end
     || {Offset, Limit, Cids} <- [
            {0, 1, [1]}, {1, 1, [2]}, {0, 3, [1, 2, 3]}, {2, 3, [3]}, {3, 1, []}, {1000, 1, []}
        ]
    ].

filtered() ->
    ?assertEqual([2], cids(#{cid => 2})),
    ?assertEqual([], cids(#{cid => 4})),
    ?assertEqual([1, 3], cids(#{user => <<"b">>})),
    ?assertEqual([1, 2, 3], cids(#{acc => <<"$G">>})),
    ?assertEqual([], cids(#{acc => <<"other">>})),
    ?assertEqual([1, 2], cids(#{filter_subject => <<"a.b">>})),
    ?assertEqual([1, 2], cids(#{filter_subject => <<"a.x">>})),
    ?assertEqual([2], cids(#{filter_subject => <<"c">>})),
    ?assertEqual([], cids(#{state => closed})),
    ?assertEqual([1, 2, 3], cids(#{state => any})).

with_subscriptions() ->
    #{connections := [First, Second, Third]} = connz(#{subs => subjects}),
    ?assertMatch(#{subscriptions_list := [<<"a.*">>]}, First),
    ?assertMatch(#{subscriptions_list := [<<"a.*">>, <<"a.b">>, <<"c">>]}, Second),
    ?assertMatch(#{subscriptions_list := []}, Third),
    #{connections := [_, Detailed, _]} = connz(#{subs => detail}),
    ?assertMatch(
        #{
            subscriptions_list_detail := [
                #{sid := <<"1">>, subject := <<"a.*">>, msgs := 1},
                #{sid := <<"2">>, subject := <<"a.b">>, qgroup := <<"q">>, max := 5, msgs := 2},
                #{sid := <<"3">>}
            ]
        },
        Detailed
    ).

names_only_where_asked_for() ->
    #{connections := [Quiet | _]} = connz(#{}),
    ?assertNot(is_map_key(authorized_user, Quiet) orelse is_map_key(account, Quiet)),
    ?assertNot(is_map_key(subscriptions_list, Quiet)),
    #{connections := [Named | _]} = connz(#{auth => true}),
    ?assertMatch(#{authorized_user := <<"b">>, account := <<"$G">>, name := <<"c1">>, port := 4001}, Named).

round_trips() ->
    #{connections := [First, Second, Third]} = connz(#{}),
    ?assertMatch(#{rtt := <<"312µs"/utf8>>}, First),
    ?assertMatch(#{rtt := <<"52.0001ms">>}, Second),
    ?assertNot(is_map_key(rtt, Third)).

over_tls() ->
    #{connections := [First, Second, _]} = connz(#{}),
    ?assertMatch(#{tls_version := <<"1.3">>, tls_cipher_suite := <<"TLS_AES_128_GCM_SHA256">>}, Second),
    ?assertNot(is_map_key(tls_version, First)),
    %% What tells who it is, is not for everybody.
    ?assertNot(is_map_key(jwt, Second) orelse is_map_key(issuer_key, Second) orelse is_map_key(tags, Second)),
    #{connections := [Quiet, Named, _]} = connz(#{auth => true}),
    ?assertMatch(
        #{jwt := <<"ey">>, issuer_key := <<"AISSUER">>, name_tag := <<"ann">>, tags := [<<"t:1">>]}, Named
    ),
    ?assertNot(is_map_key(jwt, Quiet) orelse is_map_key(tags, Quiet)).

json(Path, Query) ->
    {200, Body} = answer(Path, Query),
    %% Enough of JSON for these answers.
    Body.

accounts() ->
    ?assertMatch({_, _}, binary:match(json(<<"/accountz">>, #{}), <<"\"accounts\":[\"$G\"]">>)),
    Detail = json(<<"/accountz">>, #{<<"acc">> => <<"$G">>}),
    [
        ?assertMatch({_, _}, binary:match(Detail, Field))
     || Field <- [
            <<"\"account_name\":\"$G\"">>,
            <<"\"client_connections\":3">>,
            <<"\"subscriptions\":4">>,
            <<"\"expired\":false">>
        ]
    ],
    ?assertEqual(<<"Account x does not exist\n">>, refused(<<"/accountz">>, #{<<"acc">> => <<"x">>})).

accounts_with_statistics() ->
    #{account_statz := [Statistics]} = nats_gateway_monitor_accounts:accstatz(false, gateway()),
    ?assertEqual(
        #{
            acc => <<"$G">>,
            name => <<>>,
            conns => 3,
            leafnodes => 0,
            total_conns => 3,
            num_subscriptions => 4,
            sent => #{msgs => 14, bytes => 1},
            received => #{msgs => 4, bytes => 8},
            slow_consumers => 0
        },
        Statistics
    ).

%% Nobody has come from them yet.
accounts_of_an_operator_test() ->
    Operator = {OperatorKey, _} = nats_gateway_credentials:pair(operator),
    Account = {Key, _} = nats_gateway_credentials:pair(account),
    Claims = #{name => <<"Acme">>, nats => #{tags => [<<"x:1">>], revocations => #{<<"*">> => 1}}},
    Jwt = nats_gateway_credentials:account(Account, Claims, Operator),
    {ok, Trust} = nats_gateway_jwt:trust([OperatorKey], [{undefined, Jwt}]),
    {ok, Login} = nats_gateway_login:new(#{methods => [{jwt, Trust}]}),
    #{config := Config} = Gateway = gateway(),
    Operated = Gateway#{config := Config#{login := Login}},
    ?assertMatch({ok, #{accounts := [<<"$G">>, Key]}}, nats_gateway_monitor_accounts:accountz(all, Operated)),
    {ok, #{account_detail := Detail}} = nats_gateway_monitor_accounts:accountz({one, Key}, Operated),
    ?assertEqual(
        #{
            account_name => Key,
            expired => false,
            complete => true,
            jetstream_enabled => false,
            leafnode_connections => 0,
            client_connections => 0,
            subscriptions => 0,
            jwt => Jwt,
            issuer_key => OperatorKey,
            name_tag => <<"Acme">>,
            tags => [<<"x:1">>],
            revoked_user => #{<<"*">> => <<"1970-01-01T00:00:01.000Z">>}
        },
        Detail
    ),
    ?assertMatch(#{account_statz := []}, nats_gateway_monitor_accounts:accstatz(false, Operated)),
    ?assertMatch(
        #{account_statz := [#{acc := <<"$G">>}, #{acc := Key, name := <<"Acme">>, conns := 0}]},
        nats_gateway_monitor_accounts:accstatz(true, Operated)
    ).

subsz(Options) ->
    Defaults = #{subs => true, offset => 0, limit => 1024},
    nats_gateway_monitor_facts:subsz(maps:merge(Defaults, Options), gateway()).

all_that_is_subscribed() ->
    Listed = fun(Options) ->
        #{subscriptions_list := List, total := Total} = subsz(Options),
        {Total, [{Cid, Sid} || #{cid := Cid, sid := Sid} <- List]}
    end,
    All = [{1, <<"1">>}, {2, <<"1">>}, {2, <<"2">>}, {2, <<"3">>}],
    ?assertEqual({4, All}, Listed(#{})),
    ?assertEqual({4, [{2, <<"1">>}]}, Listed(#{offset => 1, limit => 1})),
    ?assertEqual({4, []}, Listed(#{offset => 4})),
    ?assertEqual({3, lists:sublist(All, 3)}, Listed(#{test => <<"a.b">>})),
    ?assertEqual({1, [{2, <<"3">>}]}, Listed(#{test => <<"c">>})),
    Sum = subsz(#{subs => false}),
    ?assertMatch(#{num_subscriptions := 4}, Sum),
    ?assertNot(is_map_key(subscriptions_list, Sum)).

sums() ->
    Varz = nats_gateway_monitor_facts:varz(#{<<"/varz">> => 1}, ?BIND, gateway()),
    ?assertMatch(
        #{
            connections := 3,
            total_connections := 3,
            in_msgs := 4,
            out_msgs := 14,
            in_bytes := 8,
            out_bytes := 1,
            subscriptions := 4,
            slow_consumers := 0,
            host := <<"127.0.0.1">>,
            port := 4222,
            http_port := 8222,
            tls_required := false,
            uptime := <<"1m1s">>,
            ping_interval := 30000000000,
            http_req_stats := #{<<"/varz">> := 1}
        },
        Varz
    ),
    %% One of the listeners has no limit.
    ?assertNot(is_map_key(max_connections, Varz)).

metrics() ->
    [ok = nats_gateway_census:login_refused(jwt, jwt_expired) || _ <- [1, 2]],
    ok = nats_gateway_durations:add(decode, erlang:convert_time_unit(2, millisecond, native)),
    {200, Text} = answer(<<"/metrics">>),
    Lines = binary:split(Text, <<"\n">>, [global]),
    [
        ?assert(lists:member(Line, Lines))
     || Line <- [
            <<"nats_gateway_up 1">>,
            <<"nats_gateway_connections{listener=\"tcp:default\"} 3">>,
            <<"nats_gateway_connections{listener=\"wss:\\\"a\\\\b\\\"\"} 0">>,
            <<"nats_gateway_messages_total{direction=\"in\"} 4">>,
            <<"nats_gateway_messages_total{direction=\"out\"} 14">>,
            <<"nats_gateway_pending_bytes 7">>,
            <<"nats_gateway_connections_ended_total{reason=\"slow_consumer\"} 0">>,
            <<"nats_gateway_logins_refused_total{method=\"jwt\",reason=\"jwt_expired\"} 2">>,
            <<"nats_gateway_client_rtt_seconds_max 0.0520001">>,
            <<"nats_gateway_mailbox_messages 0">>,
            <<"nats_gateway_library_call_seconds_bucket{function=\"decode\",le=\"5.0e-6\"} 0">>,
            <<"nats_gateway_library_call_seconds_bucket{function=\"decode\",le=\"+Inf\"} 1">>,
            <<"nats_gateway_library_call_seconds_sum{function=\"decode\"} 0.002">>,
            <<"nats_gateway_library_call_seconds_count{function=\"decode\"} 1">>,
            <<"nats_gateway_broker_round_trip_seconds_count 0">>,
            <<"# TYPE nats_gateway_broker_round_trip_seconds histogram">>,
            <<"# TYPE nats_gateway_messages_total counter">>
        ]
    ],
    %% Each line is of the format, and each metric is described once.
    Format = "^(# (HELP|TYPE) nats_gateway_[a-z_]+ .+|nats_gateway_[a-z_]+(\\{[a-z]+=\".*\"\\})? -?[0-9.e-]+|)$",
    ?assertEqual([], [Line || Line <- Lines, re:run(Line, Format) =:= nomatch]),
    Types = [Line || Line = <<"# TYPE", _/binary>> <- Lines],
    ?assertEqual(length(Types), length(lists:usort(Types))).

%% What waits is seen without the client's doing anything.
mailboxes() ->
    [#census{pid = Pid} | _] = lists:keysort(#census.cid, nats_gateway_census:open()),
    true = erlang:suspend_process(Pid),
    [Pid ! N || N <- lists:seq(1, 7)],
    {200, Text} = answer(<<"/metrics">>),
    true = erlang:resume_process(Pid),
    Lines = binary:split(Text, <<"\n">>, [global]),
    ?assert(lists:member(<<"nats_gateway_mailbox_messages 7">>, Lines)),
    ?assert(lists:member(<<"nats_gateway_mailbox_messages_max 7">>, Lines)).

refusals_test_() ->
    [
        ?_assertEqual(<<Text/binary, "\n">>, refused(Path, Query))
     || {Path, Query, Text} <- [
            {<<"/connz">>, #{<<"limit">> => <<"-1">>}, <<"limit: a whole number, 0 or more">>},
            {<<"/connz">>, #{<<"offset">> => <<"a">>}, <<"offset: a whole number, 0 or more">>},
            {<<"/connz">>, #{<<"cid">> => <<>>}, <<"cid: a whole number, 0 or more">>},
            {<<"/connz">>, #{<<"state">> => <<"x">>}, <<"state: one of open, closed, any, all">>},
            {<<"/connz">>, #{<<"subs">> => <<"x">>}, <<"subs: 1, true, 0 or false">>},
            {<<"/connz">>, #{<<"auth">> => <<"yes">>}, <<"auth: 1, true, 0 or false">>},
            {<<"/subsz">>, #{<<"limit">> => <<"1.5">>}, <<"limit: a whole number, 0 or more">>}
        ]
    ].

limits_test_() ->
    [
        {binary_to_list(Given), fun() ->
            {200, Body} = answer(<<"/connz">>, #{<<"limit">> => Given}),
            ?assertMatch({_, _}, binary:match(Body, <<"\"limit\":", Shown/binary, ",">>))
        end}
     || {Given, Shown} <- [
            {<<"0">>, <<"1024">>},
            {<<"1">>, <<"1">>},
            {<<"10000">>, <<"10000">>},
            {<<"10001">>, <<"10000">>},
            {<<"99999999999999999999">>, <<"10000">>}
        ]
    ].

health_test() ->
    ?assertEqual({200, <<"{\"status\":\"ok\"}\n">>}, answer(<<"/healthz">>)),
    Sick = (gateway())#{health => fun() -> {error, ["no ", "\"broker\""]} end},
    {503, "application/json", Body} =
        nats_gateway_monitor:answer({<<"/healthz">>, #{}}, {#{}, ?BIND, Sick}),
    ?assertEqual(
        <<"{\"error\":\"no \\\"broker\\\"\",\"status\":\"unavailable\",\"status_code\":503}\n">>,
        iolist_to_binary(Body)
    ).

duration_test_() ->
    [
        ?_assertEqual(Text, nats_gateway_monitor_facts:duration(Ns))
     || {Ns, Text} <- [
            {0, <<"0ns">>},
            {999, <<"999ns">>},
            {1000, <<"1µs"/utf8>>},
            {999_999, <<"999µs"/utf8>>},
            {1_000_000, <<"1ms">>},
            {52_378_929, <<"52.378929ms">>},
            {1_000_000_000, <<"1s">>},
            {1_500_000_000, <<"1.5s">>},
            {62_500_000_000, <<"1m2.5s">>},
            {3_600_000_000_001, <<"1h0m0.000000001s">>}
        ]
    ].

uptime_test_() ->
    [
        ?_assertEqual(Text, nats_gateway_monitor_facts:uptime(Ms))
     || {Ms, Text} <- [
            {-1, <<"0s">>},
            {0, <<"0s">>},
            {999, <<"0s">>},
            {1000, <<"1s">>},
            {60000, <<"1m0s">>},
            {3600000, <<"1h0m0s">>},
            {86400000, <<"1d0h0m0s">>},
            {31536000000, <<"1y0d0h0m0s">>},
            {31626061000, <<"1y1d1h1m1s">>}
        ]
    ].

%% -------------------------------------------------------------------------------------------
%% Over HTTP

served_test_() ->
    {setup,
        fun() ->
            {ok, _} = application:ensure_all_started(inets),
            {ok, Pid} = nats_gateway_monitor:start_link(#{
                bind => {{127, 0, 0, 1}, free_port()}, gateway => fun gateway/0
            }),
            true = unlink(Pid),
            Pid
        end,
        fun(Pid) -> gen_server:stop(Pid) end, [
            {"GET", fun() -> ?assertMatch({200, <<"{\"status\":\"ok\"}\n">>}, request("GET", "/healthz")) end},
            {"parameters", fun() ->
                ?assertMatch({200, _}, request("GET", "/connz?subs=1&auth&state=any&sort=last&limit=5"))
            end},
            {"an escape", fun() -> ?assertMatch({200, _}, request("GET", "/subsz?subs=1&test=a%2Eb")) end},
            {"a wrong escape", fun() -> ?assertMatch({400, _}, request("GET", "/subsz?test=%zz")) end},
            {"HEAD", fun() -> ?assertEqual({200, <<>>}, request("HEAD", "/varz")) end},
            {"another method", fun() -> ?assertMatch({405, _}, request("PUT", "/varz")) end},
            {"another path", fun() -> ?assertMatch({404, _}, request("GET", "/varz/../../etc/passwd")) end},
            {"a file", fun() -> ?assertMatch({404, _}, request("GET", "/config.hocon")) end},
            {"the page", fun() ->
                {200, Page} = request("GET", "/"),
                ?assertMatch({_, _}, binary:match(Page, <<"<title>NATS gateway</title>">>))
            end},
            {"a port in use", fun() ->
                {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
                {ok, Port} = inet:port(Socket),
                ?assertEqual(
                    {error, {shutdown, {listen, eaddrinuse}}},
                    gen_server:start(nats_gateway_monitor, (options())#{bind := {{127, 0, 0, 1}, Port}}, [])
                ),
                ok = gen_tcp:close(Socket),
                %% The one that was there is still asked.
                ?assertMatch({200, _}, request("GET", "/varz"))
            end}
        ]}.

options() -> maps:with([bind, gateway], persistent_term:get(nats_gateway_monitor)).

free_port() ->
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Socket),
    ok = gen_tcp:close(Socket),
    Port.

request(Method, Path) ->
    #{bind := {Address, Port}} = options(),
    {ok, Socket} = gen_tcp:connect(Address, Port, [binary, {active, false}]),
    ok = gen_tcp:send(Socket, [Method, " ", Path, " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]),
    [Head, Body] = binary:split(all(Socket, <<>>), <<"\r\n\r\n">>),
    <<"HTTP/1.1 ", Status:3/binary, _/binary>> = Head,
    {binary_to_integer(Status), Body}.

all(Socket, Acc) ->
    case gen_tcp:recv(Socket, 0, 5000) of
        {ok, Data} -> all(Socket, <<Acc/binary, Data/binary>>);
        {error, closed} -> Acc
    end.
