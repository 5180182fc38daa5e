%% What is asked below `$SYS.REQ.SERVER', and how many at a time.
-module(nats_gateway_monitor_system_tests).

-include_lib("eunit/include/eunit.hrl").

-define(ID, <<"NID">>).

gateway(Health) ->
    Config = nats_gateway_file:defaults(),
    #{
        config => Config#{server_id := ?ID, server_name := <<"gateway one">>},
        listeners => [
            #{name => <<"tcp:a">>, type => tcp, bind => {{127, 0, 0, 1}, 4222}, max_connections => infinity}
        ],
        started => erlang:system_time(millisecond) - 61000,
        health => Health
    }.

with_service_test_() ->
    {foreach,
        fun() ->
            _ = persistent_term:erase(nats_gateway_census),
            _ = persistent_term:erase(nats_gateway_monitor),
            serve(fun() -> ok end),
            Started = [
                pg:start_link(nats_gateway_servers),
                nats_gateway_census:start_link(),
                nats_gateway_monitor_system:start_link()
            ],
            [
                begin
                    true = unlink(Pid),
                    Pid
                end
             || {ok, Pid} <- Started
            ]
        end,
        fun(Pids) ->
            ok = nats_gateway_monitor_system:forget(),
            [stop(Pid) || Pid <- lists:reverse(Pids)],
            answers()
        end,
        [
            {timeout, 30, Test}
         || Test <- [
                fun names/0,
                fun envelopes/0,
                fun only_those_that_are_meant/0,
                fun what_is_no_request/0,
                fun the_size_of_a_request/0,
                fun options_of_connz/0,
                fun options_of_subsz/0,
                fun as_many_as_a_message_holds/0,
                fun kick/0,
                fun lame_duck/0,
                fun at_once_and_waiting/0,
                fun an_answer_that_fails/0,
                fun another_id/0,
                fun nobody_may_ask_any_more/0
            ]
        ]}.

serve(Health) -> persistent_term:put(nats_gateway_monitor_system, fun() -> gateway(Health) end).

stop(Pid) ->
    Monitor = monitor(process, Pid),
    true = exit(Pid, kill),
    receive
        {'DOWN', Monitor, process, _, _} -> ok
    end.

ask(Name) -> ask(Name, <<>>).

ask(Name, Body) -> ask(Name, Body, 1048576).

ask(Name, Body, Max) ->
    nats_gateway_monitor_system:ask(#{
        name => Name,
        body => Body,
        requester => self(),
        reply_topic => <<"r">>,
        max => Max,
        by => <<"admin">>
    }).

%% The answer to a request, which goes where the requester's process expects it.
answer(Name, Body) -> answer(Name, Body, 1048576).

answer(Name, Body, Max) ->
    ok = ask(Name, Body, Max),
    receive
        {'$gen_cast', {answer, <<"r">>, undefined, Json}} ->
            ?assert(byte_size(Json) =< Max orelse binary:match(Json, <<"\"error\"">>) =/= nomatch),
            {ok, Answer} = nats_gateway_nif:json_decode(Json),
            Answer
    after 10000 -> error({no_answer, Name, Body})
    end.

refused(Name, Body) ->
    #{<<"server">> := _, <<"error">> := #{<<"code">> := Code, <<"description">> := Text}} = answer(Name, Body),
    {Code, Text}.

answers() ->
    receive
        {'$gen_cast', {answer, _, undefined, Json}} -> [Json | answers()]
    after 0 -> []
    end.

%% Those that know each other as one cluster are on other nodes: test/emqx/test_cluster.py has two.
names() ->
    [
        ?assertEqual({Name, Result}, {Name, ask(Name)})
     || {Result, Names} <- [
            {ok, [
                <<"PING">>, <<"PING.STATSZ">>, <<"PING.IDZ">>, <<"PING.VARZ">>, <<"PING.CONNZ">>, <<"PING.SUBSZ">>,
                <<"PING.HEALTHZ">>, <<"NID.STATSZ">>, <<"NID.IDZ">>, <<"NID.VARZ">>, <<"NID.CONNZ">>,
                <<"NID.SUBSZ">>, <<"NID.HEALTHZ">>, <<"NID.KICK">>, <<"NID.LDM">>
            ]},
            {no_responders, [
                <<>>, <<"NID">>, <<"OTHER.VARZ">>, <<"OTHER.KICK">>, <<"PING.KICK">>, <<"PING.LDM">>, <<"PING.JSZ">>,
                <<"NID.JSZ">>, <<"NID.RELOAD">>, <<"PING.">>, <<"ping">>, <<"PING.varz">>, <<"NID.VARZ.X">>,
                <<"*.VARZ">>, <<"NID.>">>
            ]}
        ],
        Name <- Names
    ].

envelopes() ->
    Stats = answer(<<"PING">>, <<>>),
    #{<<"server">> := Server, <<"statsz">> := Figures} = Stats,
    ?assertEqual([<<"server">>, <<"statsz">>], lists:sort(maps:keys(Stats))),
    ?assertMatch(#{<<"name">> := <<"gateway one">>, <<"id">> := ?ID, <<"host">> := <<"127.0.0.1">>}, Server),
    ?assertMatch(#{<<"jetstream">> := false, <<"ver">> := _, <<"time">> := _, <<"seq">> := _}, Server),
    ?assertMatch(#{<<"connections">> := 0, <<"active_servers">> := 1, <<"received">> := #{<<"msgs">> := 0}}, Figures),
    ?assertEqual(
        #{<<"name">> => <<"gateway one">>, <<"host">> => <<"127.0.0.1">>, <<"id">> => ?ID},
        answer(<<"NID.IDZ">>, <<"{}">>)
    ),
    %% Without a monitoring port.
    ?assertMatch(
        #{<<"data">> := #{<<"server_id">> := ?ID, <<"http_port">> := 0, <<"http_host">> := <<>>}},
        answer(<<"NID.VARZ">>, <<"{}">>)
    ),
    ?assertMatch(
        #{<<"data">> := #{<<"status">> := <<"ok">>, <<"status_code">> := 200}}, answer(<<"PING.HEALTHZ">>, <<"{}">>)
    ),
    serve(fun() -> {error, "broken"} end),
    ?assertMatch(
        #{<<"data">> := #{<<"status">> := <<"unavailable">>, <<"status_code">> := 503, <<"error">> := <<"broken">>}},
        answer(<<"PING.HEALTHZ">>, <<"{}">>)
    ).

%% Who is not meant says nothing.
only_those_that_are_meant() ->
    Meant = [
        <<"{\"server_name\":\"one\"}">>, <<"{\"server_name\":\"gateway one\",\"exact_match\":true}">>,
        <<"{\"host\":\"127\"}">>, <<"{\"server_name\":\"\",\"host\":null,\"tags\":[],\"cluster\":\"\"}">>
    ],
    NotMeant = [
        <<"{\"server_name\":\"two\"}">>, <<"{\"server_name\":\"one\",\"exact_match\":true}">>,
        <<"{\"host\":\"127\",\"exact_match\":true}">>, <<"{\"cluster\":\"c\"}">>, <<"{\"tags\":[\"t\"]}">>,
        <<"{\"domain\":\"d\"}">>
    ],
    [ok = ask(<<"PING.IDZ">>, Body) || Body <- NotMeant],
    [?assertMatch(#{<<"id">> := ?ID}, answer(<<"PING.IDZ">>, Body)) || Body <- Meant],
    timer:sleep(100),
    ?assertEqual([], answers()).

what_is_no_request() ->
    [
        ?assertEqual({Body, {400, Text}}, {Body, refused(<<"PING.CONNZ">>, Body)})
     || {Text, Bodies} <- [
            {<<"the request must be a JSON object">>, [<<"x">>, <<"[]">>, <<"1">>, <<" ">>, <<"{\"a\":}">>, <<255>>]},
            {<<"limit: a whole number, 0 or more">>, [<<"{\"limit\":-1}">>, <<"{\"limit\":\"x\"}">>]},
            {<<"limit: must be a string, a number, true or false">>, [<<"{\"limit\":{}}">>, <<"{\"limit\":1.5}">>]},
            {<<"state: 0, 1 or 2">>, [<<"{\"state\":3}">>, <<"{\"state\":\"open\"}">>]},
            {<<"mqtt_client: no client of this server has one">>, [<<"{\"mqtt_client\":\"c\"}">>]},
            {<<"server_name: must be a string">>, [<<"{\"server_name\":1}">>]}
        ],
        Body <- Bodies
    ],
    {400, Sort} = refused(<<"PING.CONNZ">>, <<"{\"sort\":\"x\"}">>),
    ?assertMatch(<<"sort: one of cid, ", _/binary>>, Sort).

the_size_of_a_request() ->
    Body = fun(Size) -> <<"{\"a\":\"", (binary:copy(<<"x">>, Size - 8))/binary, "\"}">> end,
    65536 = byte_size(Body(65536)),
    ?assertMatch(#{<<"id">> := ?ID}, answer(<<"PING.IDZ">>, Body(65536))),
    ?assertEqual({400, <<"the request is too long">>}, refused(<<"PING.IDZ">>, Body(65537))).

%% A client that is there, and says so as a connection does.
client(Cid, Description) ->
    Test = self(),
    Pid = spawn(fun() ->
        ok = nats_gateway_census:enter(Cid, <<"tcp:a">>, #{}),
        ok = nats_gateway_census:report(<<"$G">>, #{subscriptions => 1}),
        Test ! {self(), there},
        answering(Test, Cid, Description)
    end),
    receive
        {Pid, there} -> Pid
    end.

answering(Test, Cid, Description) ->
    receive
        {'$gen_call', From, {describe, _}} ->
            Subscription = #{
                sid => <<"1">>, subject => <<"s.", (integer_to_binary(Cid))/binary>>, queue_group => undefined,
                delivered => 0, max => infinity
            },
            gen_server:reply(From, {ok, #{subscriptions => 1}, Description, [Subscription]});
        {'$gen_call', From, tell_lame_duck} ->
            gen_server:reply(From, maps:get(takes_info, Description));
        {'$gen_call', From, kick} ->
            Test ! {kicked, Cid},
            gen_server:reply(From, ok)
    end,
    answering(Test, Cid, Description).

description(User) ->
    #{
        peername => {{127, 0, 0, 1}, 4000}, transport => tcp, user => User, account => <<"$G">>, takes_info => true
    }.

with_clients(Cids, Test) ->
    Pids = [client(Cid, description(<<"u", (integer_to_binary(Cid))/binary>>)) || Cid <- Cids],
    try
        Test()
    after
        [exit(Pid, kill) || Pid <- Pids]
    end.

cids(Body) -> cids(Body, 1048576).

cids(Body, Max) ->
    #{<<"data">> := #{<<"connections">> := Connections}} = answer(<<"PING.CONNZ">>, Body, Max),
    [Cid || #{<<"cid">> := Cid} <- Connections].

%% What the command `nats' sends has all fields, with 0 and "" where nothing was asked for.
options_of_connz() ->
    with_clients([1, 2, 3], fun() ->
        All = <<
            "{\"sort\":\"\",\"auth\":true,\"subscriptions\":true,\"subscriptions_detail\":false,"
            "\"offset\":0,\"limit\":1024,\"cid\":0,\"mqtt_client\":\"\",\"state\":0,\"user\":\"\","
            "\"acc\":\"\",\"filter_subject\":\"\",\"exact_match\":true}"
        >>,
        #{<<"data">> := #{<<"connections">> := [First | _] = Connections}} = answer(<<"PING.CONNZ">>, All),
        ?assertEqual(3, length(Connections)),
        ?assertMatch(#{<<"authorized_user">> := <<"u1">>, <<"subscriptions_list">> := [<<"s.1">>]}, First),
        ?assertEqual([2], cids(<<"{\"cid\":2}">>)),
        ?assertEqual([3], cids(<<"{\"user\":\"u3\"}">>)),
        ?assertEqual([], cids(<<"{\"acc\":\"A\"}">>)),
        ?assertEqual([1], cids(<<"{\"filter_subject\":\"s.1\"}">>)),
        ?assertEqual([2, 3], cids(<<"{\"offset\":1,\"limit\":2}">>)),
        ?assertEqual([1, 2, 3], cids(<<"{\"offset\":0,\"limit\":0}">>)),
        ?assertEqual([], cids(<<"{\"state\":1}">>)),
        ?assertEqual([1, 2, 3], cids(<<"{\"state\":2}">>)),
        #{<<"data">> := #{<<"connections">> := [Detailed]}} =
            answer(<<"PING.CONNZ">>, <<"{\"cid\":1,\"subscriptions_detail\":true}">>),
        ?assertMatch(#{<<"subscriptions_list_detail">> := [#{<<"sid">> := <<"1">>}]}, Detailed),
        ?assertNot(is_map_key(<<"authorized_user">>, Detailed))
    end).

options_of_subsz() ->
    with_clients([1, 2], fun() ->
        Subjects = fun(Body) ->
            #{<<"data">> := Data} = answer(<<"PING.SUBSZ">>, Body),
            [Subject || #{<<"subject">> := Subject} <- maps:get(<<"subscriptions_list">>, Data, [])]
        end,
        ?assertEqual([], Subjects(<<"{}">>)),
        ?assertEqual([<<"s.1">>, <<"s.2">>], Subjects(<<"{\"subscriptions\":true,\"offset\":0,\"limit\":2048}">>)),
        ?assertEqual([<<"s.2">>], Subjects(<<"{\"subscriptions\":true,\"test\":\"s.2\"}">>)),
        ?assertEqual([<<"s.1">>, <<"s.2">>], Subjects(<<"{\"subscriptions\":true,\"account\":\"$G\"}">>)),
        ?assertEqual([], Subjects(<<"{\"subscriptions\":true,\"account\":\"A\"}">>))
    end).

%% Whoever reads on by offset and limit finds all of them.
as_many_as_a_message_holds() ->
    with_clients(lists:seq(1, 40), fun() ->
        #{<<"data">> := Data} = answer(<<"PING.CONNZ">>, <<"{\"limit\":40}">>, 4096),
        #{<<"connections">> := Listed, <<"limit">> := Limit, <<"total">> := Total, <<"num_connections">> := N} = Data,
        ?assert(Limit > 1 andalso Limit < 40),
        ?assertEqual({Limit, Limit, 40}, {length(Listed), N, Total}),
        ?assertEqual(lists:seq(1, 40), read_on(0, 4096)),
        #{<<"data">> := #{<<"subscriptions_list">> := Subscriptions, <<"limit">> := Most}} =
            answer(<<"PING.SUBSZ">>, <<"{\"subscriptions\":true}">>, 2048),
        ?assertEqual(Most, length(Subscriptions)),
        ?assert(Most < 40),
        #{<<"error">> := #{<<"code">> := Code, <<"description">> := Text}} = answer(<<"NID.VARZ">>, <<>>, 100),
        ?assertEqual({500, <<"the answer has more than max_payload, 100 bytes">>}, {Code, Text})
    end).

read_on(Offset, Max) ->
    Body = iolist_to_binary(io_lib:format("{\"limit\":40,\"offset\":~b}", [Offset])),
    case cids(Body, Max) of
        [] -> [];
        Cids -> Cids ++ read_on(Offset + length(Cids), Max)
    end.

%% All of it where it fits to the byte, at least one less where it does not.
fit_test_() ->
    Fit = fun(Facts, Max) ->
        case nats_gateway_monitor_system:fit(Facts, fun(Some) -> #{data => Some} end, Max) of
            {ok, Json} ->
                {ok, #{<<"data">> := Data}} = nats_gateway_nif:json_decode(Json),
                ?assert(byte_size(Json) =< Max),
                Data;
            too_large ->
                too_large
        end
    end,
    Connz = #{connections => [#{cid => N} || N <- lists:seq(1, 9)], num_connections => 9, limit => 9},
    Size = byte_size(nats_gateway_nif:json(#{data => Connz})),
    One = byte_size(nats_gateway_nif:json(#{data => Connz#{connections := [#{cid => 1}]}})),
    Subsz = #{subscriptions_list => [#{subject => S} || S <- [<<"\"subscriptions_list\":[]">>, <<"b">>]], limit => 2},
    None = #{connections => [], num_connections => 0, limit => 9},
    Nothing = byte_size(nats_gateway_nif:json(#{data => None})),
    [
        ?_assertMatch(#{<<"num_connections">> := 9, <<"limit">> := 9}, Fit(Connz, Size)),
        ?_assertMatch(
            #{<<"num_connections">> := 8, <<"limit">> := 8, <<"connections">> := [#{<<"cid">> := 1} | _]},
            Fit(Connz, Size - 1)
        ),
        ?_assertMatch(
            #{<<"num_connections">> := 1, <<"limit">> := 1, <<"connections">> := [#{<<"cid">> := 1}]}, Fit(Connz, One)
        ),
        ?_assertEqual(too_large, Fit(Connz, One - 1)),
        ?_assertEqual(too_large, Fit(Connz, 0)),
        ?_assertMatch(#{<<"connections">> := []}, Fit(None, Nothing)),
        ?_assertEqual(too_large, Fit(None, Nothing - 1)),
        ?_assertMatch(#{<<"subscriptions_list">> := [_, #{<<"subject">> := <<"b">>}]}, Fit(Subsz, 1000)),
        %% In VARZ it is a number.
        ?_assertMatch(#{<<"connections">> := 3}, Fit(#{connections => 3}, 100)),
        ?_assertEqual(too_large, Fit(#{mem => 1}, 1))
    ].

kick() ->
    with_clients([5, 6], fun() ->
        Answer = answer(<<"NID.KICK">>, <<"{\"cid\":6}">>),
        ?assertEqual([<<"server">>], maps:keys(Answer)),
        receive
            {kicked, Cid} -> ?assertEqual(6, Cid)
        end,
        [
            ?assertEqual({Body, {500, <<"no such client or leafnode id">>}}, {Body, refused(<<"NID.KICK">>, Body)})
         || Body <- [<<"{\"cid\":7}">>, <<"{\"cid\":0}">>, <<"{}">>, <<>>, <<"{\"id\":6}">>]
        ],
        [
            ?assertEqual({Body, {400, <<"cid: must be a whole number">>}}, {Body, refused(<<"NID.KICK">>, Body)})
         || Body <- [<<"{\"cid\":\"6\"}">>, <<"{\"cid\":-1}">>, <<"{\"cid\":6.0}">>, <<"{\"cid\":null}">>]
        ],
        %% It is not for this server.
        ok = ask(<<"NID.KICK">>, <<"{\"cid\":5,\"server_name\":\"other\"}">>),
        timer:sleep(50),
        ?assertEqual([], answers()),
        receive
            {kicked, Other} -> error({kicked, Other})
        after 0 -> ok
        end
    end).

lame_duck() ->
    Takes = client(8, description(<<"u">>)),
    Not = client(9, (description(<<"u">>))#{takes_info := false}),
    ?assertEqual([<<"server">>], maps:keys(answer(<<"NID.LDM">>, <<"{\"cid\":8}">>))),
    ?assertEqual(
        {500, <<"client does not support Lame Duck Mode or is not ready to receive the notification">>},
        refused(<<"NID.LDM">>, <<"{\"cid\":9}">>)
    ),
    ?assertEqual({500, <<"no such client id">>}, refused(<<"NID.LDM">>, <<"{\"cid\":10}">>)),
    [exit(Pid, kill) || Pid <- [Takes, Not]].

%% A health check that takes its time: four at once, 64 that wait, and the next is told so.
at_once_and_waiting() ->
    Test = self(),
    Busy = fun() ->
        Test ! {busy, self()},
        receive
            go_on -> ok
        end
    end,
    serve(Busy),
    [ok = ask(<<"PING.HEALTHZ">>) || _ <- lists:seq(1, 4 + 64)],
    First = [worker() || _ <- lists:seq(1, 4)],
    receive
        {busy, _} -> error(more_at_once)
    after 100 -> ok
    end,
    ?assertEqual([], answers()),
    ?assertEqual({503, <<"too many requests at a time">>}, refused(<<"PING.HEALTHZ">>, <<>>)),
    %% One that is done makes room for one.
    [Done | Others] = First,
    Done ! go_on,
    Next = worker(),
    [_] = all_answers(1),
    ok = ask(<<"PING.HEALTHZ">>),
    ?assertEqual({503, <<"too many requests at a time">>}, refused(<<"PING.HEALTHZ">>, <<>>)),
    [Worker ! go_on || Worker <- [Next | Others]],
    [worker() ! go_on || _ <- lists:seq(1, 4 + 64 + 1 - 5)],
    ?assertEqual(4 + 64, length(all_answers(4 + 64))).

worker() ->
    receive
        {busy, Worker} -> Worker
    after 5000 -> error(no_worker)
    end.

all_answers(0) ->
    [];
all_answers(N) ->
    receive
        {'$gen_cast', {answer, _, undefined, Json}} ->
            ?assertNotEqual(nomatch, binary:match(Json, <<"\"status\":\"ok\"">>)),
            [Json | all_answers(N - 1)]
    after 5000 -> []
    end.

%% One that is ended, as one that takes too long is, and one that crashes. No answer is lost.
an_answer_that_fails() ->
    Test = self(),
    serve(fun() ->
        Test ! {busy, self()},
        receive
            go_on -> ok
        end
    end),
    ok = ask(<<"PING.HEALTHZ">>),
    true = exit(worker(), kill),
    receive
        {'$gen_cast', {answer, _, undefined, Late}} ->
            ?assertNotEqual(nomatch, binary:match(Late, <<"the answer could not be made in time">>))
    after 5000 -> error(no_answer)
    end,
    serve(fun() -> error({secret, <<"s3cr3t">>}) end),
    ?assertEqual({500, <<"the gateway could not tell: its log says why">>}, refused(<<"PING.HEALTHZ">>, <<>>)),
    serve(fun() -> ok end),
    ?assertMatch(#{<<"data">> := _}, answer(<<"PING.HEALTHZ">>, <<>>)).

another_id() ->
    persistent_term:put(nats_gateway_monitor_system, fun() ->
        Gateway = #{config := Config} = gateway(fun() -> ok end),
        Gateway#{config := Config#{server_id := <<"NEW">>}}
    end),
    ok = gen_server:cast(nats_gateway_monitor_system, changed),
    _ = sys:get_state(nats_gateway_monitor_system),
    ?assertEqual(no_responders, ask(<<"NID.IDZ">>)),
    ?assertMatch(#{<<"id">> := <<"NEW">>}, answer(<<"NEW.IDZ">>, <<>>)).

nobody_may_ask_any_more() ->
    ok = nats_gateway_monitor_system:change(false, fun() -> gateway(fun() -> ok end) end),
    _ = sys:get_state(nats_gateway_monitor_system),
    ?assertEqual(no_responders, ask(<<"PING">>)),
    ?assertEqual(no_responders, ask(<<"NID.VARZ">>)).

without_a_service_test() -> ?assertEqual(no_responders, ask(<<"PING">>)).
