%% The channel as a function: bytes of a client and events of a fake host in, bytes and calls of
%% the host out.
-module(nats_gateway_channel_tests).

-include("nats_gateway.hrl").
-include_lib("eunit/include/eunit.hrl").

-export([log/2]).

-import(nats_gateway_channel, [handle_info/2, handle_timeout/2]).

-define(CONNECT, "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n").
-define(CONNECT_REQUESTER,
    "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n"
).

channel() -> channel(#{}).

channel(Settings) ->
    flush(),
    Config = maps:merge(nats_gateway_file:defaults(), Settings),
    {ok, Info, {ready, infinity}, Channel} =
        nats_gateway_channel:init(nats_gateway_host_fake, nats_gateway_host_fake:client(Config)),
    {iolist_to_binary(Info), Channel}.

open(Text) -> open(Text, #{}).

open(Text, Settings) ->
    {_, Channel} = channel(Settings),
    {<<>>, NChannel} = input(Text, Channel),
    _ = calls(),
    NChannel.

%% Feeds bytes as the connection does, in as many decode calls as it takes.
input(Text, Channel) -> input(iolist_to_binary(Text), <<>>, Channel).

input(<<>>, Out, Channel) ->
    {Out, Channel};
input(Bytes, Out, Channel) ->
    case nats_gateway_nif:decode(Bytes, nats_gateway_channel:decoder(Channel)) of
        {ok, Ops, Rest, Need} ->
            case nats_gateway_channel:handle_ops(Ops, Channel) of
                {ok, More, _, NChannel} when Need =:= 0 ->
                    input(Rest, append(Out, More), NChannel);
                {ok, More, _, NChannel} ->
                    <<>> = Rest,
                    {append(Out, More), NChannel};
                {stop, Reason, More, _} ->
                    {stop, Reason, append(Out, More)}
            end;
        {error, Reason, Ops} ->
            case nats_gateway_channel:handle_ops(Ops ++ [{error, Reason}], Channel) of
                {ok, More, _, NChannel} -> {append(Out, More), NChannel};
                {stop, R, More, _} -> {stop, R, append(Out, More)}
            end
    end.

append(Out, More) -> iolist_to_binary([Out, More]).

events(Events, Channel) ->
    case handle_info({fake, events, Events}, Channel) of
        {ok, Out, _, NChannel} -> {iolist_to_binary(Out), NChannel};
        {stop, Reason, Out, _} -> {stop, Reason, iolist_to_binary(Out)}
    end.

set(Callback, Answer, Channel) ->
    {ok, [], _, NChannel} = handle_info({fake, set, Callback, Answer}, Channel),
    NChannel.

%% All that is left, each time with what it is about to be.
continued(Channel) -> continued(next(Channel), Channel).

continued(behind, Channel) ->
    {ok, Out, {Next, infinity}, NChannel} = nats_gateway_channel:continue(Channel),
    {More, Last} = continued(Next, NChannel),
    {[iolist_to_binary(Out) | More], Last};
continued(_, Channel) ->
    {[], Channel}.

%% What the channel says of itself is in each of its answers, also in that to no operation at all.
says(Channel) ->
    {ok, [], Next, _} = nats_gateway_channel:handle_ops([], Channel),
    Next.

next(Channel) -> element(1, says(Channel)).

ends_at(Channel) -> element(2, says(Channel)).

%% What the host was asked since the last look.
calls() ->
    receive
        {host, Call} -> [Call | calls()]
    after 0 -> []
    end.

flush() ->
    _ = calls(),
    ok.

delivery(Filter, Topic, Payload) ->
    #delivery{key = {undefined, Filter}, topic = Topic, payload = Payload}.

%% -------------------------------------------------------------------------------------------

info_tells_the_settings_test() ->
    {Info, _} = channel(#{max_payload_size => 99, auth_required => true}),
    ?assertMatch({0, _}, binary:match(Info, <<"INFO {">>)),
    lists:foreach(
        fun(Field) -> ?assertNotEqual(nomatch, binary:match(Info, Field)) end,
        [
            <<"\"max_payload\":99">>,
            <<"\"client_id\":7">>,
            <<"\"client_ip\":\"127.0.0.1\"">>,
            <<"\"auth_required\":true">>,
            <<"\"version\":\"2.10.27\"">>,
            <<"\"proto\":1">>,
            <<"\"go\":">>
        ]
    ),
    ?assertEqual(nomatch, binary:match(Info, <<"null">>)).

connect_fields_reach_the_host_test() ->
    {_, Channel} = channel(),
    {<<"+OK\r\n">>, _} = input(
        "CONNECT {\"user\":\"u\",\"pass\":\"p\",\"name\":\"n\",\"x\":1}\r\n", Channel
    ),
    ?assertMatch([{connect, #{user := <<"u">>, pass := <<"p">>, name := <<"n">>}}], calls()).

without_connect_a_client_has_the_defaults_test() ->
    {_, Channel} = channel(),
    {<<"+OK\r\n">>, _} = input("SUB a 1\r\n", Channel),
    ?assertMatch([{connect, Fields}, {subscribe, _, #{confirm := true}}] when Fields =:= #{}, calls()).

with_auth_required_nothing_comes_before_connect_test() ->
    {_, Channel} = channel(#{auth_required => true}),
    ?assertEqual(
        {stop, authorization_violation, <<"-ERR 'Authorization Violation'\r\n">>},
        input("PING\r\n", Channel)
    ),
    ?assertEqual([], calls()),
    {<<"+OK\r\nPONG\r\n">>, _} = input("CONNECT {}\r\nPING\r\n", Channel).

a_refused_login_drops_what_follows_test() ->
    {_, Channel} = channel(#{fake => #{connect => {error, authorization_violation}}}),
    ?assertEqual(
        {stop, authorization_violation, <<"-ERR 'Authorization Violation'\r\n">>},
        input("CONNECT {}\r\nPING\r\nSUB a 1\r\n", Channel)
    ),
    ?assertMatch([{connect, _}], calls()).

operations_wait_for_the_login_test() ->
    {_, Channel} = channel(#{fake => #{connect => wait}}),
    {<<>>, C1} = input(?CONNECT, Channel),
    ?assertEqual(blocked, next(C1)),
    Session = #{mountpoint => <<"m/">>, clientid => <<"c">>},
    {<<>>, C2} = events([{connected, Session}], C1),
    ?assertEqual(ready, next(C2)),
    ?assertMatch(
        #decoder{phase = open, headers = false, mountpoint = <<"m/">>},
        nats_gateway_channel:decoder(C2)
    ).

%% They were decoded when nobody knew the mountpoint yet.
operations_without_connect_are_under_the_mountpoint_test_() ->
    Text =
        "SUB r.* 1\r\nSUB a q 2\r\nPUB a.b r.1 0\r\n\r\nPUB a..b r..1 0\r\n\r\n"
        "PUB / 0\r\n\r\nCONNECT {}\r\nPUB c 0\r\n\r\n",
    Expected = fun(Calls) ->
        ?assertMatch(
            [
                {connect, _},
                {subscribe, {undefined, <<"m/r/+">>}, _},
                {subscribe, {<<"q">>, <<"m/a">>}, _},
                {publish,
                    [
                        #pub{subject = <<"a.b">>, topic = <<"m/a/b">>, reply_to = <<"r.1">>, reply_topic = <<"m/r/1">>},
                        #pub{subject = <<"a..b">>, topic = invalid, reply_to = <<"r..1">>, reply_topic = invalid},
                        #pub{subject = <<"/">>, topic = <<"m/">>, reply_to = undefined, reply_topic = undefined}
                    ],
                    _},
                {publish, [#pub{
                    subject = <<"c">>,
                    topic = <<"m/c">>,
                    reply_to = undefined,
                    reply_topic = undefined
                }], _}
            ],
            [Call || Call <- Calls, Call =/= barrier]
        )
    end,
    [
        {"at once", fun() ->
            {_, Channel} = channel(#{mountpoint => <<"m/">>}),
            _ = input(Text, Channel),
            Expected(calls())
        end},
        {"later", fun() ->
            {_, Channel} = channel(#{mountpoint => <<"m/">>, fake => #{connect => wait}}),
            {First, Rest} = lists:split(string:str(Text, "PUB c") - 1, Text),
            {<<>>, Waiting} = input(First, Channel),
            {_, Connected} = events([{connected, #{mountpoint => <<"m/">>, clientid => <<"c">>}}], Waiting),
            _ = input(Rest, Connected),
            Expected(calls())
        end}
    ].

%% What gives the host work waits for it; what was delivered meanwhile does not.
a_host_that_is_behind_gets_nothing_more_test_() ->
    Deliver = {deliver, [delivery(<<"a">>, <<"a">>, <<"x">>)]},
    [
        {Text, fun() ->
            C0 = set(ready, wait, open([?CONNECT, "SUB a 1\r\n"])),
            {<<>>, C1} = input([Text, "PING\r\n"], C0),
            ?assertEqual(blocked, next(C1)),
            ?assertEqual([], calls()),
            {<<"MSG a 1 1\r\nx\r\n">>, C2} = events([Deliver], C1),
            {<<"PONG\r\n">>, C3} = events([ready], set(ready, ok, C2)),
            ?assertEqual(ready, next(C3)),
            ?assertMatch([Call, barrier] when element(1, Call) =:= Name, calls())
        end}
     || {Text, Name} <- [
            {"SUB b 2\r\n", subscribe}, {"UNSUB 1\r\n", unsubscribe}, {"PUB b 0\r\n\r\n", publish}
        ]
    ].

a_host_may_be_behind_again_and_again_test() ->
    C0 = set(ready, wait, open(?CONNECT)),
    {<<>>, C1} = input("SUB a 1\r\nSUB b 2\r\n", C0),
    {<<>>, C2} = events([ready], C1),
    ?assertEqual(blocked, next(C2)),
    ?assertEqual([], calls()).

%% Who has gone is not worth the work for its subscriptions. What it has published counts.
of_who_has_left_only_messages_count_test() ->
    C0 = set(ready, wait, open([?CONNECT, "SUB a 1\r\n"])),
    {<<>>, C1} = input(
        "SUB b 2\r\nPUB c 1\r\nx\r\nUNSUB 1\r\nPING\r\nSUB d 3\r\nPUB c 1\r\ny\r\n", C0
    ),
    C2 = set(ready, ok, nats_gateway_channel:leave(C1)),
    {<<>>, C3} = events([ready], C2),
    ?assertMatch(
        [
            {publish, [#pub{payload = <<"x">>}], _},
            {publish, [#pub{payload = <<"y">>}], _}
        ],
        calls()
    ),
    {<<>>, C4} = input("CONNECT {\"echo\":false}\r\n", C3),
    ?assertEqual([barrier], calls()),
    ?assertMatch({stop, client_closed, _, _}, nats_gateway_channel:handle_ops([eof], C4)).

%% A login that takes its time is no reason to forget what comes behind it.
nobody_has_left_before_the_login_test() ->
    {_, Channel} = channel(#{fake => #{connect => wait}}),
    {<<>>, C1} = input(?CONNECT, Channel),
    Session = #{mountpoint => <<>>, clientid => <<"c">>},
    {<<>>, C2} = events([{connected, Session}], nats_gateway_channel:leave(C1)),
    {<<>>, _} = input("SUB a 1\r\n", C2),
    ?assertMatch([{connect, _}, {subscribe, _, _}], calls()).

%% One step for all subscriptions, which what follows waits for.
another_echo_is_one_step_test() ->
    Off = "CONNECT {\"echo\":false}\r\n",
    C0 = set(subscribe_again, wait, open([?CONNECT, "SUB a 1\r\nSUB b q 2\r\n"])),
    {<<>>, C1} = input(["CONNECT {\"echo\":true}\r\n", Off], C0),
    ?assertEqual(blocked, next(C1)),
    Keys = [{undefined, <<"a">>}, {<<"q">>, <<"b">>}],
    ?assertEqual([{subscribe_again, Keys, #{confirm => false, no_local => true}}], calls()),
    {<<>>, C2} = events([{subscribed_again, []}], C1),
    {<<>>, C2} = input(Off, C2),
    ?assertEqual([], calls()),
    {Out, C3} =
        input("CONNECT {\"echo\":true}\r\n", set(subscribe_again, {ok, [{hd(Keys), denied}]}, C2)),
    ?assertEqual(<<"-ERR 'Permissions Violation for Subscription to \"a\"'\r\n">>, Out),
    ?assertEqual([{subscribe_again, Keys, #{confirm => false, no_local => false}}], calls()),
    ?assertMatch([#{sid := <<"2">>}], nats_gateway_channel:subscriptions(C3)),
    {stop, upstream_lost, <<>>} =
        input(Off, set(subscribe_again, {stop, upstream_lost}, C3)).

a_login_refused_later_test() ->
    {_, Channel} = channel(#{fake => #{connect => wait}}),
    {<<>>, C1} = input(?CONNECT, Channel),
    ?assertEqual({stop, upstream_lost, <<>>}, events([{refused, upstream_lost}], C1)).

%% docs/protocol.md section 2: a later CONNECT overwrites what it gives, and logs in again only
%% when the credentials change.
a_later_connect_merges_test() ->
    {_, Channel} = channel(),
    {_, C1} = input("CONNECT {\"user\":\"u\",\"pass\":\"p\"}\r\n", Channel),
    _ = calls(),
    {<<>>, C2} = input("CONNECT {\"verbose\":false}\r\n", C1),
    ?assertEqual([], calls()),
    {<<>>, C3} = input("SUB a 1\r\n", C2),
    _ = calls(),
    {<<>>, _} = input("CONNECT {\"pass\":\"other\"}\r\n", C3),
    ?assertMatch(
        [
            {disconnect, _},
            {connect, #{user := <<"u">>, pass := <<"other">>}},
            {subscribe_again, [{undefined, <<"a">>}], _}
        ],
        calls()
    ).

accounts_are_refused_test() ->
    {_, Channel} = channel(),
    ?assertMatch({stop, authorization_violation, _}, input("CONNECT {\"account\":\"A\"}\r\n", Channel)).

%% A member of a queue group that leaves by its max has got more from the broker than it takes.
what_a_member_does_not_take_any_more_is_declined_test() ->
    Key = {<<"q">>, <<"a">>},
    Copy = fun(Id) -> #delivery{key = Key, topic = <<"a">>, payload = <<>>, id = {Id, {origin, Id}}} end,
    C0 = open([?CONNECT, "SUB a q 1\r\nUNSUB 1 2\r\n"]),
    _ = calls(),
    {Out, C1} = events([{deliver, [Copy(<<N>>) || N <- lists:seq(1, 4)]}], C0),
    ?assertEqual(<<"MSG a 1 0\r\n\r\nMSG a 1 0\r\n\r\n">>, Out),
    ?assertEqual(
        [{unsubscribe, Key}, {decline, [{Key, {origin, <<3>>}}, {Key, {origin, <<4>>}}]}], calls()
    ),
    %% and what comes until the broker has forgotten the member
    {<<>>, C2} = events([{deliver, [Copy(<<5>>)]}], C1),
    ?assertEqual([{decline, [{Key, {origin, <<5>>}}]}], calls()),
    {<<>>, C3} = events([{unsubscribed, Key}, {deliver, [Copy(<<6>>)]}], C2),
    ?assertEqual([{decline, [{Key, {origin, <<6>>}}]}], calls()),
    %% another host cannot give it to anybody
    {<<>>, _} = events([{deliver, [(Copy(<<7>>))#delivery{id = <<7>>}]}], C3),
    ?assertEqual([], calls()).

%% What nobody takes for another reason is nobody else's.
what_is_not_for_the_group_is_not_declined_test() ->
    Key = {<<"q">>, <<"a/#">>},
    Copy = fun(Topic, Id) -> #delivery{key = Key, topic = Topic, payload = <<>>, id = {Id, origin}} end,
    C0 = open([?CONNECT, "SUB a.> q 1\r\nSUB a.b q 2\r\n"]),
    {<<>>, C1} = events([{joined, Key}, {joined, {<<"q">>, <<"a/b">>}}], C0),
    _ = calls(),
    %% `a.>' does not match `a', and the other copy of the second is the one that counts
    {_, C2} = events([{deliver, [Copy(<<"a">>, <<1>>), Copy(<<"a/b">>, <<2>>)]}], C1),
    {_, _} = events([{deliver, [(Copy(<<"a/b">>, <<2>>))#delivery{key = {<<"q">>, <<"a/b">>}}]}], C2),
    ?assertEqual([], calls()).

%% As in nats-server, where a message is written before the next operation is looked at.
the_ok_of_an_operation_is_behind_own_messages_before_it_test_() ->
    Delivery = delivery(<<"a">>, <<"a">>, <<"hi">>),
    [
        ?_test(begin
            {<<"+OK\r\n">>, Verbose} = input("CONNECT {\"verbose\":true}\r\n", open([?CONNECT, "SUB a 1\r\n"])),
            {Before, C1} = input(["PUB a 2\r\nhi\r\n", Op], set(barrier, wait, Verbose)),
            {After, _} = events([{deliver, [Delivery]}, barrier], C1),
            ?assertEqual(
                <<"+OK\r\nMSG a 1 2\r\nhi\r\n+OK\r\n">>, <<Before/binary, After/binary>>
            )
        end)
     || Op <- ["UNSUB 1\r\n", "SUB b 2\r\n"]
    ].

verbose_acknowledges_everything_but_pings_test() ->
    {_, Channel} = channel(),
    {Out, _} = input(
        "CONNECT {\"pedantic\":false}\r\nSUB a 1\r\nPUB a 1\r\nx\r\nPUB a 1\r\ny\r\nUNSUB 1\r\nPING\r\nPONG\r\n",
        Channel
    ),
    ?assertEqual(<<"+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\nPONG\r\n">>, Out).

a_run_of_publishes_is_one_batch_test() ->
    C = open(?CONNECT),
    {<<>>, _} = input("PUB a 1\r\n1\r\nPUB b 1\r\n2\r\nSUB c 1\r\nPUB d 1\r\n3\r\n", C),
    ?assertMatch(
        [
            {publish, [#pub{subject = <<"a">>}, #pub{subject = <<"b">>}], #{confirm := false}},
            {subscribe, _, _},
            {publish, [#pub{subject = <<"d">>, payload = <<"3">>}], _}
        ],
        calls()
    ).

%% The +OKs come before the message that the publish causes, and the rest after both.
deliveries_do_not_overtake_the_ok_of_their_publish_test() ->
    {_, Channel} = channel(),
    {_, C0} = input("CONNECT {\"pedantic\":false}\r\nSUB a 1\r\n", Channel),
    C1 = set(publish, wait, C0),
    {<<>>, C2} = input("PUB a 1\r\nx\r\nPUB b 1\r\ny\r\nPING\r\n", C1),
    ?assertEqual(blocked, next(C2)),
    {<<>>, C3} = events([{deliver, [delivery(<<"a">>, <<"a">>, <<"x">>)]}], C2),
    {Out, C4} = events([{published, []}], C3),
    ?assertEqual(<<"+OK\r\n+OK\r\nMSG a 1 1\r\nx\r\nPONG\r\n">>, Out),
    ?assertEqual(ready, next(C4)).

%% The PONG comes after what was delivered before it.
pong_is_a_barrier_test() ->
    C0 = open([?CONNECT, "SUB a 1\r\n"]),
    C1 = set(barrier, wait, C0),
    {<<>>, C2} = input("PING\r\nPUB a 1\r\nx\r\n", C1),
    ?assertEqual([barrier], calls()),
    {<<"MSG a 1 1\r\nx\r\n">>, C3} =
        events([{deliver, [delivery(<<"a">>, <<"a">>, <<"x">>)]}], C2),
    {<<"PONG\r\n">>, _} = events([barrier], C3),
    ?assertMatch([{publish, _, _}], calls()).

rejections_take_the_place_of_the_ok_test() ->
    {_, Channel} = channel(),
    {_, C0} = input("CONNECT {\"pedantic\":false}\r\n", Channel),
    C1 = set(publish, {ok, [{2, denied}]}, C0),
    {Out, _} = input("PUB a 0\r\n\r\nPUB b 0\r\n\r\nPUB $SYS.c 0\r\n\r\nPUB d _R_.x 0\r\n\r\n", C1),
    ?assertEqual(
        <<
            "+OK\r\n"
            "-ERR 'Permissions Violation for Publish to \"b\"'\r\n"
            "-ERR 'Permissions Violation for Publish to \"$SYS.c\"'\r\n"
            "-ERR 'Permissions Violation for Publish with Reply of \"_R_.x\"'\r\n"
        >>,
        Out
    ),
    {publish, Passed, _} = lists:last(calls()),
    ?assertEqual([<<"a">>, <<"b">>], [Subject || #pub{subject = Subject} <- Passed]).

reserved_names_are_violations_test_() ->
    [
        {Subject, fun() ->
            C = open(?CONNECT),
            {Out, _} = input([Operation, " ", Subject, Tail], C),
            ?assertMatch({_, _}, binary:match(Out, <<"Permissions Violation">>)),
            ?assertEqual([], calls())
        end}
     || {Operation, Subjects, Tail} <- [
            {"PUB", ["$SYS.a", "$share.g.a", "$queue.a"], " 0\r\n\r\n"},
            %% by another name
            {"PUB", ["$delayed.5.$SYS.a", "$delayed.5.$delayed.5.$queue.a"], " 0\r\n\r\n"},
            {"PUB", ["_MQTT.tJFNZUy9h.c", "_MQTT.tJGRlbGF5ZWQvNS8kU1lTL2E.c"], " 0\r\n\r\n"},
            {"SUB", ["$share.g.a", "$queue.a", "$exclusive.a"], " 1\r\n"},
            {"SUB", ["$share.g.a"], " q 1\r\n"}
        ],
        Subject <- Subjects
    ].

%% nats-server has nobody there either.
requests_to_reserved_names_have_no_responders_test_() ->
    [
        {Subject, fun() ->
            Sub = "SUB r.* 1\r\n",
            Request = ["PUB ", Subject, " r.1 0\r\n\r\n"],
            {Out, _} = input(Request, open([?CONNECT_REQUESTER, Sub])),
            ?assertEqual(<<"HMSG r.1 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n">>, Out),
            ?assertMatch({<<>>, _}, input(Request, open([?CONNECT, Sub]))),
            ?assertEqual([], calls())
        end}
     || Subject <- [
            "$SYS.a", "$SYS.REQ.SERVER.PING", "$share.g.a", "$queue.a", "$delayed.5.$SYS.a",
            "_MQTT.tJFNZUy9h.c"
        ]
    ].

-define(USER_INFO(ReplyTo), ["PUB $SYS.REQ.USER.INFO ", ReplyTo, " 0\r\n\r\n"]).

%% The frame's head, and the members of the answer that do not differ from run to run.
user_info(Out) ->
    [Head, Json, <<>>] = binary:split(Out, <<"\r\n">>, [global]),
    [Name, Subject, Sid, Size] = binary:split(Head, <<" ">>, [global]),
    ?assertEqual(byte_size(Json), binary_to_integer(Size)),
    {Name, Subject, Sid, Json}.

user_info_test() ->
    {Out, _} = input(?USER_INFO("i.1"), open([?CONNECT, "SUB i.* 5\r\nSUB other 6\r\n"])),
    {<<"MSG">>, <<"i.1">>, <<"5">>, Json} = user_info(Out),
    ?assertMatch({0, _}, binary:match(Json, <<"{\"data\":{\"account\":\"$G\",\"user\":\"\"},">>)),
    ?assertMatch({_, _}, binary:match(Json, <<"\"host\":\"127.0.0.1\"">>)),
    ?assertEqual([], calls()).

%% In its place among other publishes, acknowledged, counted towards a max, to nobody without a
%% subscription, and not to a group's member.
user_info_is_a_message_test() ->
    {Out, C} = input(
        ["CONNECT {\"pedantic\":false}\r\nSUB i 5\r\nUNSUB 5 1\r\nSUB q g 6\r\n"], element(2, channel())
    ),
    ?assertEqual(<<"+OK\r\n+OK\r\n+OK\r\n+OK\r\n">>, Out),
    _ = calls(),
    Pub = "PUB a 0\r\n\r\n",
    {Answers, C1} = input([Pub, ?USER_INFO("i"), ?USER_INFO("i"), ?USER_INFO("q"), Pub], C),
    [<<>>, <<>>, Message, <<>>, <<>>, <<>>] = binary:split(Answers, <<"+OK\r\n">>, [global]),
    ?assertMatch({<<"MSG">>, <<"i">>, <<"5">>, _}, user_info(Message)),
    ?assertMatch(
        [{publish, [_], _}, {unsubscribe, {undefined, <<"i">>}}, {publish, [_], _}], calls()
    ),
    ?assertMatch(#{subscriptions := 1, messages_received := 5, messages_sent := 1}, nats_gateway_channel:stats(C1)).

user_info_of_a_login_test() ->
    Rules = #{
        publish => #{allow => [<<"a.>">>, <<"$SYS.REQ.USER.INFO">>], deny => [<<"a.b">>]},
        allow_responses => #{max => 2, expires => 3}
    },
    {_, Channel} = channel(users([user(<<"anne">>, Rules), user(<<"bob">>, #{})])),
    {Anne, _} = input([connect("anne"), "SUB i 5\r\n", ?USER_INFO("i")], Channel),
    {_, _, _, AnnesJson} = user_info(Anne),
    Data = <<
        "{\"data\":{\"account\":\"$G\",\"permissions\":{\"publish\":{\"allow\":[\"a.>\",\"$SYS.REQ.USER.INFO\"],"
        "\"deny\":[\"a.b\"]},\"responses\":{\"max\":2,\"ttl\":3000000}},\"user\":\"anne\"}"
    >>,
    ?assertMatch({0, _}, binary:match(AnnesJson, Data)),
    {Bob, _} = input([connect("bob"), "SUB i 5\r\n", ?USER_INFO("i")], Channel),
    {_, _, _, BobsJson} = user_info(Bob),
    ?assertMatch({0, _}, binary:match(BobsJson, <<"{\"data\":{\"account\":\"$G\",\"user\":\"bob\"}">>)).

user_info_denied_test() ->
    Denied = #{publish => #{allow => all, deny => [<<"$SYS.>">>]}},
    {_, Channel} = channel(users([user(<<"anne">>, Denied)])),
    {Out, C} = input([connect("anne"), "SUB i 5\r\n", ?USER_INFO("i")], Channel),
    ?assertEqual(
        <<"-ERR 'Permissions Violation for Publish to \"$SYS.REQ.USER.INFO\"'\r\n">>, Out
    ),
    {Reply, _} = input("PUB $SYS.REQ.USER.INFO _R_.x 0\r\n\r\n", C),
    ?assertEqual(Out, Reply),
    {OfAll, _} = input("PUB $SYS.REQ.USER.INFO _R_.x 0\r\n\r\n", open(?CONNECT)),
    ?assertEqual(
        <<"-ERR 'Permissions Violation for Publish with Reply of \"_R_.x\"'\r\n">>, OfAll
    ).

%% -------------------------------------------------------------------------------------------
%% What a system account may ask

-define(SYSTEM, #{system => #{users => [<<"anne">>], nkeys => [], accounts => []}}).

ask(Name) -> ["PUB $SYS.REQ.SERVER.", Name, " i 2\r\n{}\r\n"].

-define(NOBODY_ANSWERS, <<"HMSG i 5 16 16\r\nNATS/1.0 503\r\n\r\n\r\n">>).

-define(NO_RESPONDERS, ",\"headers\":true,\"no_responders\":true").

%% The answers come later, and go to the subscription that is there then.
a_server_is_asked_test() ->
    Users = [user(<<"anne">>, #{}), user(<<"bob">>, #{})],
    {_, Channel} = channel(maps:merge(users(Users), ?SYSTEM)),
    {<<>>, C1} = input([connect("anne", ?NO_RESPONDERS), "SUB i 5\r\n", ask("PING"), ask("X.VARZ")], Channel),
    Self = self(),
    ?assertMatch(
        [
            {connect, _},
            {subscribe, _, _},
            {ask_server, #{
                name := <<"PING">>, body := <<"{}">>, requester := Self, reply_topic := <<"i">>,
                max := 1048576, by := <<"anne">>
            }},
            {ask_server, #{name := <<"X.VARZ">>}}
        ],
        calls()
    ),
    {ok, Out, {ready, infinity}, C2} = nats_gateway_channel:answer(<<"i">>, undefined, <<"yes">>, C1),
    ?assertEqual(<<"MSG i 5 3\r\nyes\r\n">>, iolist_to_binary(Out)),
    {<<>>, C3} = input("UNSUB 5\r\n", C2),
    ?assertMatch({ok, [], {ready, infinity}, _}, nats_gateway_channel:answer(<<"i">>, undefined, <<"late">>, C3)),
    {Nobody, _} = input(ask("NOBODY"), C1),
    ?assertEqual(?NOBODY_ANSWERS, Nobody).

%% What an operator subscribes to below $SYS.ACCOUNT, the gateway has. The host is not asked for it.
-define(EVENT, <<"$SYS.ACCOUNT.$G.CONNECT">>).

event_out(Channel) ->
    case nats_gateway_channel:client_event(?EVENT, <<"{}">>, Channel) of
        {ok, Out, _, NChannel} -> {iolist_to_binary(Out), NChannel}
    end.

an_operator_watches_test() ->
    Users = [user(<<"anne">>, #{}), user(<<"bob">>, #{})],
    {_, Channel} = channel(maps:merge(users(Users), ?SYSTEM)),
    {<<>>, C1} = input([connect("anne", ""), "SUB $SYS.ACCOUNT.> 1\r\nSUB $SYS.ACCOUNT.*.CONNECT 2\r\n"], Channel),
    ?assertMatch([{connect, _}], calls()),
    {Both, C2} = event_out(C1),
    Lines = [<<"MSG $SYS.ACCOUNT.$G.CONNECT ", Sid, " 2\r\n{}\r\n">> || Sid <- "12"],
    ?assert(lists:member(Both, [iolist_to_binary(Lines), iolist_to_binary(lists:reverse(Lines))])),
    {<<>>, C3} = input("UNSUB 1\r\nUNSUB 2 2\r\n", C2),
    {One, C4} = event_out(C3),
    ?assertEqual(lists:nth(2, Lines), One),
    ?assertEqual([], calls()),
    %% The second message was the last one.
    {<<>>, C5} = event_out(C4),
    {<<>>, C6} = input("SUB $SYS.ACCOUNT.> 1\r\nSUB $SYS.ACCOUNT.> q 3\r\nSUB $SYS.> 4\r\nSUB > 5\r\n", C5),
    {Again, C7} = event_out(C6),
    ?assertEqual(hd(Lines), Again),
    ?assertMatch(
        [
            {subscribe, {<<"q">>, <<"$SYS/ACCOUNT/#">>}, _},
            {subscribe, {undefined, <<"$SYS/#">>}, _},
            {subscribe, {undefined, <<"#">>}, _}
        ],
        calls()
    ),
    %% Somebody else on the same connection has them at the broker.
    {<<>>, C8} = input(connect("bob", ""), C7),
    [{disconnect, login_again}, {connect, _}, {subscribe_again, Keys, _}] = calls(),
    ?assert(lists:member({undefined, <<"$SYS/ACCOUNT/#">>}, Keys)),
    ?assertMatch({<<>>, _}, event_out(C8)),
    {<<>>, C9} = input(connect("anne", ""), C8),
    [{disconnect, login_again}, {connect, _}, {subscribe_again, Others, _}] = calls(),
    ?assertEqual([{undefined, <<"$SYS/ACCOUNT/#">>}], Keys -- Others),
    ?assertMatch({<<"MSG ", _/binary>>, _}, event_out(C9)),
    %% A reload takes the name off the list.
    {ok, [], {ready, infinity}, C10} = nats_gateway_channel:configure(
        maps:merge(nats_gateway_file:defaults(), users(Users)), C9
    ),
    ?assertMatch({<<>>, _}, event_out(C10)).

somebody_else_does_not_watch_test() ->
    {_, Channel} = channel(maps:merge(users([user(<<"anne">>, #{}), user(<<"bob">>, #{})]), ?SYSTEM)),
    {<<>>, C} = input([connect("bob", ""), "SUB $SYS.ACCOUNT.> 1\r\n"], Channel),
    ?assertMatch([{connect, _}, {subscribe, {undefined, <<"$SYS/ACCOUNT/#">>}, _}], calls()),
    ?assertMatch({<<>>, _}, event_out(C)).

a_verbose_operator_test() ->
    {_, Channel} = channel(maps:merge(users([user(<<"anne">>, #{})]), ?SYSTEM)),
    {Out, _} = input(
        "CONNECT {\"verbose\":true,\"user\":\"anne\",\"pass\":\"p\"}\r\nSUB $SYS.ACCOUNT.> 1\r\nUNSUB 1\r\n",
        Channel
    ),
    ?assertEqual(<<"+OK\r\n+OK\r\n+OK\r\n">>, Out).

%% Not without a reply subject, not where the login may not publish it, and not with a reply subject that
%% nobody may have.
a_server_is_not_asked_test() ->
    Rules = #{publish => #{allow => all, deny => [<<"$SYS.REQ.SERVER.*.KICK">>]}},
    {_, Channel} = channel(maps:merge(users([user(<<"anne">>, Rules)]), ?SYSTEM)),
    {<<>>, C} = input([connect("anne", ?NO_RESPONDERS), "SUB i 5\r\n"], Channel),
    _ = calls(),
    [
        ?assertEqual({Text, Out}, {Text, element(1, input(Text, C))})
     || {Text, Out} <- [
            {<<"PUB $SYS.REQ.SERVER.PING 0\r\n\r\n">>,
                <<"-ERR 'Permissions Violation for Publish to \"$SYS.REQ.SERVER.PING\"'\r\n">>},
            {<<"PUB $SYS.REQ.SERVER.X.KICK i 0\r\n\r\n">>,
                <<"-ERR 'Permissions Violation for Publish to \"$SYS.REQ.SERVER.X.KICK\"'\r\n">>},
            {<<"PUB $SYS.REQ.SERVER.PING _R_.x 0\r\n\r\n">>,
                <<"-ERR 'Permissions Violation for Publish with Reply of \"_R_.x\"'\r\n">>},
            {<<"PUB $SYS.REQ.SERVER i 0\r\n\r\n">>, ?NOBODY_ANSWERS},
            {<<"PUB $SYS.REQ.ACCOUNT.PING.CONNZ i 0\r\n\r\n">>, ?NOBODY_ANSWERS},
            {<<"PUB $SYS.DEBUG.SUBSCRIBERS i 0\r\n\r\n">>, ?NOBODY_ANSWERS}
        ]
    ],
    ?assertEqual([], calls()).

%% What everybody else gets is what they get where nobody may ask.
nobody_else_asks_a_server_test_() ->
    Users = [user(<<"anne">>, #{}), user(<<"bob">>, #{})],
    {ok, Login} = nats_gateway_login:new(#{methods => [{users, Users}], no_auth_user => <<"anne">>}),
    Connect = fun(Fields) -> ["CONNECT {\"verbose\":false", Fields, ?NO_RESPONDERS, "}\r\n"] end,
    [
        {Name, fun() ->
            Text = [Connect(Fields), "SUB i 5\r\n", ask("PING"), ask("X.KICK"), ask("PING.VARZ")],
            {_, Before} = channel(Settings),
            {Expected, _} = input(Text, Before),
            ?assertEqual(binary:copy(?NOBODY_ANSWERS, 3), Expected),
            {_, Channel} = channel(maps:merge(Settings, ?SYSTEM)),
            {Out, _} = input(Text, Channel),
            ?assertEqual(Expected, Out),
            ?assertEqual([], [Asked || Asked = {ask_server, _} <- calls()])
        end}
     || {Name, Fields, Settings} <- [
            {"another user", ",\"user\":\"bob\",\"pass\":\"p\"", users(Users)},
            {"no login", "", #{}},
            {"the name alone", ",\"user\":\"anne\"", #{}},
            {"a name that nobody has checked", ",\"user\":\"anne\",\"pass\":\"p\"", #{}},
            {"no_auth_user", "", #{login => Login}},
            {"a name that the broker has not checked", ",\"user\":\"anne\",\"pass\":\"p\"", #{
                fake => #{session => #{username => <<"anne">>}}
            }},
            {"another name that the broker has checked", ",\"user\":\"anne\",\"pass\":\"p\"", #{
                fake => #{session => #{proven_user => <<"bob">>}}
            }}
        ]
    ].

the_broker_has_checked_the_name_test() ->
    Settings = ?SYSTEM#{fake => #{session => #{proven_user => <<"anne">>}}},
    {<<>>, _} = input(["CONNECT {\"verbose\":false}\r\nSUB i 5\r\n", ask("PING")], element(2, channel(Settings))),
    ?assertMatch([{ask_server, _}], [Asked || Asked = {ask_server, _} <- calls()]).

%% A reload that takes the name off the list holds at once.
system_access_ends_with_the_settings_test() ->
    Settings = users([user(<<"anne">>, #{})]),
    {_, Channel} = channel(maps:merge(Settings, ?SYSTEM)),
    {<<>>, C1} = input([connect("anne", ?NO_RESPONDERS), "SUB i 5\r\n", ask("PING")], Channel),
    _ = calls(),
    Config = maps:merge(nats_gateway_file:defaults(), Settings),
    {ok, [], {ready, infinity}, C2} = nats_gateway_channel:configure(Config, C1),
    {Out, _} = input(ask("PING"), C2),
    ?assertEqual(?NOBODY_ANSWERS, Out),
    ?assertEqual([], calls()).

%% In their order among other publishes, each acknowledged.
requests_to_servers_among_others_test() ->
    {_, Channel} = channel(maps:merge(users([user(<<"anne">>, #{})]), ?SYSTEM)),
    {_, C} = input(
        ["CONNECT {\"user\":\"anne\",\"pass\":\"p\",\"pedantic\":false", ?NO_RESPONDERS, "}\r\nSUB i 5\r\n"],
        Channel
    ),
    _ = calls(),
    Pub = "PUB a 0\r\n\r\n",
    {Out, C1} = input([Pub, ask("PING"), ask("NOBODY"), Pub], C),
    ?assertEqual(<<"+OK\r\n+OK\r\n+OK\r\n", ?NOBODY_ANSWERS/binary, "+OK\r\n">>, Out),
    ?assertMatch([{publish, [_], _}, {ask_server, _}, {publish, [_], _}], calls()),
    ?assertMatch(#{messages_received := 4}, nats_gateway_channel:stats(C1)).

-define(STORE, #{kv => #{<<"b">> => <<"b/">>}}).

store_request(Subject) -> ["PUB ", Subject, " i 1\r\nx\r\n"].

%% In their order among other publishes. The names that only begin alike are no requests.
requests_to_the_store_test() ->
    {_, Channel} = channel(?STORE),
    {<<>>, C} = input(["CONNECT {\"verbose\":false", ?NO_RESPONDERS, "}\r\nSUB i 5\r\n"], Channel),
    _ = calls(),
    {Out, C1} = input(
        [
            store_request("a"), store_request("$JS.API.INFO"), store_request("$KV.b.k"),
            store_request("$KV.nobody"), store_request("$KVx"), store_request("$JS"), "PUB $KV.b.k 1\r\nx\r\n"
        ],
        C
    ),
    ?assertEqual(<<"HMSG i 5 16 16\r\nNATS/1.0 503\r\n\r\n\r\n">>, Out),
    Buckets = maps:get(kv, ?STORE),
    ?assertMatch(
        [
            {publish, [#pub{subject = <<"a">>}], _},
            {ask_store, <<"$JS.API.INFO">>, Buckets},
            {ask_store, <<"$KV.b.k">>, Buckets},
            {publish, [#pub{subject = <<"$KVx">>}, #pub{subject = <<"$JS">>}], _},
            {ask_store, <<"$KV.b.k">>, Buckets}
        ],
        calls()
    ),
    ?assertMatch(#{messages_received := 7}, nats_gateway_channel:stats(C1)).

%% The login's permissions come first, and a verbose client gets its +OK.
permissions_of_requests_to_the_store_test() ->
    Rules = #{publish => #{allow => all, deny => [<<"$KV.b.secret">>, <<"$JS.API.STREAM.>">>]}},
    {_, Channel} = channel(maps:merge(users([user(<<"anne">>, Rules)]), ?STORE)),
    {_, C} = input("CONNECT {\"user\":\"anne\",\"pass\":\"p\",\"pedantic\":false}\r\nSUB i 5\r\n", Channel),
    _ = calls(),
    {Out, _} = input(
        [store_request("$KV.b.secret"), store_request("$KV.b.k"), store_request("$JS.API.STREAM.NAMES")], C
    ),
    ?assertEqual(
        <<
            "-ERR 'Permissions Violation for Publish to \"$KV.b.secret\"'\r\n+OK\r\n",
            "-ERR 'Permissions Violation for Publish to \"$JS.API.STREAM.NAMES\"'\r\n"
        >>,
        Out
    ),
    ?assertMatch([{ask_store, <<"$KV.b.k">>, _}], calls()).

%% Where the settings have no buckets, such names are names like others.
no_store_test_() ->
    [
        fun() ->
            {_, Channel} = channel(Settings),
            {<<>>, C} = input("CONNECT {\"verbose\":false}\r\n", Channel),
            _ = calls(),
            Text = [store_request("a"), store_request("$KV.b.k"), store_request("b"), store_request("$JS.API.INFO")],
            {<<>>, _} = input(Text, C),
            Published = lists:append([Pubs || {publish, Pubs, _} <- calls()]),
            ?assertEqual(
                [<<"a">>, <<"$KV.b.k">>, <<"b">>, <<"$JS.API.INFO">>], [S || #pub{subject = S} <- Published]
            )
        end
     || Settings <- [#{}, #{kv => off}]
    ].

%% What a watcher has goes to the client's own subscription, with the subjects of the keys.
feed_test() ->
    {_, Channel} = channel(?STORE),
    {<<>>, C} = input("CONNECT {\"verbose\":false,\"headers\":true}\r\nSUB d 7\r\n", Channel),
    Frames = [
        {<<"$KV/b/k">>, {subject, <<"$JS.ACK.x">>}, undefined, <<"v">>},
        {inbox, undefined, <<"NATS/1.0 100 Idle Heartbeat\r\n\r\n">>, <<>>}
    ],
    {yes, {ok, Out, {ready, infinity}, C1}} = nats_gateway_channel:feed(<<"d">>, Frames, C),
    ?assertEqual(
        <<
            "MSG $KV.b.k 7 $JS.ACK.x 1\r\nv\r\n",
            "HMSG d 7 31 31\r\nNATS/1.0 100 Idle Heartbeat\r\n\r\n\r\n"
        >>,
        iolist_to_binary(Out)
    ),
    ?assertMatch({yes, {ok, [], {ready, infinity}, _}}, nats_gateway_channel:feed(<<"d">>, [], C1)),
    ?assertMatch({no, {ok, [], {ready, infinity}, _}}, nats_gateway_channel:feed(<<"e">>, Frames, C1)),
    Large = [{<<"$KV/b/k">>, undefined, undefined, binary:copy(<<"x">>, 600000)} || _ <- [1, 2, 3]],
    ?assertMatch({behind, {ok, _, {behind, infinity}, _}}, nats_gateway_channel:feed(<<"d">>, Large, C1)),
    {<<>>, C2} = input("UNSUB 7\r\n", C1),
    ?assertMatch({no, {ok, [], {ready, infinity}, _}}, nats_gateway_channel:feed(<<"d">>, Frames, C2)).

a_kicked_client_is_told_nothing_test() ->
    {_, BeforeLogin} = channel(),
    [
        begin
            {ok, Result} = nats_gateway_channel:handle_call(kick, Channel),
            ?assertMatch({stop, kicked, [], _}, stopped(Result))
        end
     || Channel <- [open(?CONNECT), BeforeLogin]
    ].

stopped({stop, Reason, Out, Channel}) ->
    case iolist_size(Out) of
        0 -> {stop, Reason, [], Channel};
        _ -> {stop, Reason, Out, Channel}
    end.

pedantic_speaks_up_in_addition_test() ->
    {_, Channel} = channel(),
    {Out, _} = input("CONNECT {}\r\nPUB a.* 0\r\n\r\nPUB a 0\r\n\r\n", Channel),
    ?assertEqual(<<"+OK\r\n-ERR 'Invalid Publish Subject'\r\n+OK\r\n+OK\r\n">>, Out).

no_responders_at_once_and_later_test() ->
    C0 = open([?CONNECT_REQUESTER, "SUB r.* 1\r\n"]),
    C1 = set(publish, {ok, [{1, no_responders}]}, C0),
    Answer = <<"HMSG r.1 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n">>,
    {Answer, C2} = input("PUB svc r.1 0\r\n\r\n", C1),
    {Answer, C3} = events([{publish_rejected, <<"svc">>, <<"r.1">>, no_responders}], C2),
    %% nobody listens for it
    {<<>>, _} = events([{publish_rejected, <<"svc">>, <<"other">>, no_responders}], C3).

%% Its topic would be another reply subject, but the subscription is the same.
no_responders_to_a_reply_subject_of_another_spelling_test() ->
    C0 = open([?CONNECT_REQUESTER, "SUB r.%41 1\r\n"]),
    C1 = set(publish, {ok, [{1, no_responders}]}, C0),
    {Out, C2} = input("PUB svc r.%41 0\r\n\r\n", C1),
    ?assertEqual(<<"HMSG r.%41 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n">>, Out),
    {Later, _} = events([{publish_rejected, <<"svc">>, <<"r.%41">>, no_responders}], C2),
    ?assertEqual(Out, Later).

no_responders_needs_headers_test() ->
    {_, Channel} = channel(),
    ?assertEqual(
        {stop, no_responders_requires_headers,
            <<"-ERR 'no responders requires headers support'\r\n">>},
        input("CONNECT {\"no_responders\":true}\r\n", Channel)
    ).

fan_out_to_the_sids_of_a_subject_test() ->
    C0 = open([?CONNECT, "SUB a 1\r\nSUB a 2\r\nSUB a q 3\r\n"]),
    {Out, C1} = events([{deliver, [delivery(<<"a">>, <<"a">>, <<"x">>)]}], C0),
    ?assertEqual(
        [<<"">>, <<"MSG a 1 1">>, <<"MSG a 2 1">>, <<"x">>, <<"x">>],
        lists:sort(binary:split(Out, <<"\r\n">>, [global]))
    ),
    {<<"MSG a 3 1\r\ny\r\n">>, _} = events(
        [{deliver, [(delivery(<<"a">>, <<"a">>, <<"y">>))#delivery{key = {<<"q">>, <<"a">>}}]}], C1
    ).

%% Of each kind, since the last report.
operations_are_counted_test() ->
    {_, C0} = input(
        "CONNECT {\"headers\":true,\"no_responders\":true}\r\nSUB r 1\r\nSUB a 2\r\nSUB a..b 3\r\nUNSUB 9\r\n",
        element(2, channel())
    ),
    C1 = set(publish, {ok, [{2, no_responders}, {3, denied}]}, C0),
    {_, C2} = input(
        [
            "PUB x 0\r\n\r\nPUB y r 0\r\n\r\nHPUB z 12 12\r\nNATS/1.0\r\n\r\n\r\n",
            "PING\r\nPONG\r\n"
        ],
        C1
    ),
    With = (delivery(<<"a">>, <<"a">>, <<"x">>))#delivery{headers = {properties, [{<<"k">>, <<"v">>}], undefined}},
    Empty = With#delivery{headers = {properties, [], undefined}},
    {Messages, C3} = events(
        [{deliver, [delivery(<<"a">>, <<"a">>, <<"x">>), With, Empty]}], C2
    ),
    ?assertMatch({0, 4}, binary:match(Messages, <<"MSG ">>)),
    ?assertEqual(1, length(binary:matches(Messages, <<"HMSG ">>))),
    {ok, _, _, C4} = handle_timeout(heartbeat, C3),
    {<<"+OK\r\n">>, C5} = input("SUB b 4\r\n", C4),
    _ = calls(),
    C6 = nats_gateway_channel:report(#{octets_sent => 1}, C5),
    [{report, #{octets_sent := 1, messages_received := 3, operations := Operations}}] = calls(),
    ?assertEqual(
        [
            {{received, connect}, 1},
            {{received, hpub}, 1},
            {{received, ping}, 1},
            {{received, pong}, 1},
            {{received, pub}, 2},
            {{received, sub}, 4},
            {{received, unsub}, 1},
            {{sent, err}, 2},
            {{sent, hmsg}, 2},
            {{sent, info}, 1},
            %% CONNECT, SUB, SUB, UNSUB, PUB, PUB, SUB
            {{sent, msg}, 2},
            {{sent, ok}, 7},
            {{sent, ping}, 1},
            {{sent, pong}, 1}
        ],
        lists:sort(Operations)
    ),
    _ = nats_gateway_channel:report(#{}, C6),
    ?assertMatch([{report, #{operations := []}}], calls()).

nobody_counts_where_there_are_no_statistics_test() ->
    C = open(?CONNECT, #{enable_stats => false}),
    _ = nats_gateway_channel:report(#{}, C),
    ?assertMatch([{report, #{operations := []}}], calls()).

a_message_that_no_control_line_can_hold_is_counted_test() ->
    Channel = open([?CONNECT, "SUB > 1\r\n"]),
    Long = binary:copy(<<"x">>, 4096),
    Deliveries = [delivery(<<"#">>, Topic, <<"hi">>) || Topic <- [<<"a">>, Long, <<"b">>]],
    {Out, NChannel} = events([{deliver, Deliveries}], Channel),
    ?assertEqual(<<"MSG a 1 2\r\nhi\r\nMSG b 1 2\r\nhi\r\n">>, Out),
    ?assertMatch(
        #{messages_sent := 2, messages_unroutable := 1}, nats_gateway_channel:stats(NChannel)
    ).

headers_only_to_those_who_take_them_test() ->
    Block = <<"NATS/1.0\r\nA: b\r\n\r\n">>,
    Delivery = (delivery(<<"a">>, <<"a">>, <<"x">>))#delivery{reply = {subject, <<"r">>}, headers = Block},
    C0 = open(["CONNECT {\"verbose\":false,\"headers\":true}\r\n", "SUB a 1\r\n"]),
    {<<"HMSG a 1 r 18 19\r\nNATS/1.0\r\nA: b\r\n\r\nx\r\n">>, _} =
        events([{deliver, [Delivery]}], C0),
    C1 = open([?CONNECT, "SUB a 1\r\n"]),
    {<<"MSG a 1 r 1\r\nx\r\n">>, _} = events([{deliver, [Delivery]}], C1).

a_max_reached_by_a_delivery_unsubscribes_test() ->
    C0 = open([?CONNECT, "SUB a 1\r\nUNSUB 1 2\r\n"]),
    Copy = delivery(<<"a">>, <<"a">>, <<"x">>),
    {Out, C1} = events([{deliver, [Copy, Copy, Copy]}], C0),
    ?assertEqual(<<"MSG a 1 1\r\nx\r\nMSG a 1 1\r\nx\r\n">>, Out),
    ?assertEqual([{unsubscribe, {undefined, <<"a">>}}], calls()),
    %% the sid is free again
    {<<>>, _} = input("SUB b 1\r\n", C1),
    ?assertMatch([{subscribe, {undefined, <<"b">>}, _}], calls()).

a_denied_subscription_frees_the_sid_test() ->
    C0 = set(subscribe, denied, open(?CONNECT)),
    {Out, C1} = input("SUB a q 1\r\n", C0),
    ?assertEqual(
        <<"-ERR 'Permissions Violation for Subscription to \"a\" using queue \"q\"'\r\n">>, Out
    ),
    {<<>>, C2} = input("SUB b 1\r\n", set(subscribe, ok, C1)),
    {Later, C3} = events([{subscribe_rejected, {undefined, <<"b">>}, denied}], C2),
    ?assertEqual(<<"-ERR 'Permissions Violation for Subscription to \"b\"'\r\n">>, Later),
    ?assertEqual([], nats_gateway_channel:subscriptions(C3)).

a_subscription_confirmed_later_test() ->
    {_, Channel} = channel(),
    {_, C0} = input("CONNECT {}\r\n", Channel),
    {<<>>, C1} = input("SUB a 1\r\nPING\r\n", set(subscribe, wait, C0)),
    {<<"+OK\r\nPONG\r\n">>, _} = events([{subscribed, ok}], C1),
    {Denied, _} = events([{subscribed, denied}], C1),
    ?assertEqual(
        <<"-ERR 'Permissions Violation for Subscription to \"a\"'\r\nPONG\r\n">>, Denied
    ).

%% 0 is no limit (nats_gateway_config), so the smallest is 1.
max_subscriptions_test() ->
    C0 = open([?CONNECT, "SUB a 1\r\n"], #{max_subscriptions => 2}),
    {<<>>, C1} = input("SUB b 2\r\n", C0),
    {<<"-ERR 'maximum subscriptions exceeded'\r\n">>, C2} = input("SUB c 3\r\n", C1),
    %% checked before the sid in use
    {<<"-ERR 'maximum subscriptions exceeded'\r\n">>, C3} = input("SUB a 1\r\n", C2),
    {<<>>, _} = input("UNSUB 2\r\nSUB c 3\r\n", C3).

invalid_subjects_stay_open_test() ->
    C = open(?CONNECT),
    {Out, _} = input("SUB a..b 1\r\nSUB a.>.b 1\r\nSUB .a 1\r\nPING\r\n", C),
    Line = <<"-ERR 'Invalid Subject'\r\n">>,
    ?assertEqual(<<Line/binary, Line/binary, Line/binary, "PONG\r\n">>, Out).

what_precedes_an_error_is_done_test() ->
    C = open([?CONNECT, "SUB a 1\r\n"]),
    ?assertEqual(
        {stop, unknown_protocol_operation,
            <<"PONG\r\n-ERR 'Unknown Protocol Operation'\r\n">>},
        input("PING\r\nGET / HTTP/1.1\r\nPING\r\n", C)
    ).

an_error_waits_for_its_turn_test() ->
    C0 = set(barrier, wait, open(?CONNECT)),
    {<<>>, C1} = input("PING\r\nxyz\r\n", C0),
    ?assertEqual(
        {stop, unknown_protocol_operation,
            <<"PONG\r\n-ERR 'Unknown Protocol Operation'\r\n">>},
        events([barrier, barrier], C1)
    ).

%% What the operations before a fatal line cause is written before its text.
own_messages_come_before_a_fatal_text_test() ->
    C0 = set(barrier, wait, open([?CONNECT, "SUB a 1\r\n"])),
    {<<>>, C1} = input("PUB a 1\r\nx\r\nxyz\r\n", C0),
    {<<"MSG a 1 1\r\nx\r\n">>, C2} =
        events([{deliver, [delivery(<<"a">>, <<"a">>, <<"x">>)]}], C1),
    ?assertEqual(
        {stop, unknown_protocol_operation, <<"-ERR 'Unknown Protocol Operation'\r\n">>},
        events([barrier], C2)
    ).

%% A second CONNECT may be refused, or begin another session with the broker.
own_messages_come_before_a_second_connect_test_() ->
    Deliver = {deliver, [delivery(<<"a">>, <<"a">>, <<"x">>)]},
    [
        {Connect, fun() ->
            C0 = set(barrier, wait, open([?CONNECT, "SUB a 1\r\n"])),
            {<<>>, C1} = input(["PUB a 1\r\nx\r\n", Connect, "PING\r\n"], C0),
            {<<"MSG a 1 1\r\nx\r\n">>, C2} = events([Deliver], C1),
            ?assertEqual(Expected, events([barrier], C2))
        end}
     || {Connect, Expected} <- [
            {"CONNECT {\"protocol\":7}\r\n",
                {stop, invalid_client_protocol, <<"-ERR 'invalid client protocol'\r\n">>}},
            {"CONNECT {\"account\":\"x\"}\r\n",
                {stop, authorization_violation, <<"-ERR 'Authorization Violation'\r\n">>}}
        ]
    ].

%% As nats-server, which looks at the subject before the payload has come.
subject_and_end_of_a_payload_test_() ->
    [
        {Subject, ?_assertEqual({stop, unknown_protocol_operation, iolist_to_binary(Texts)}, begin
            C = open(["CONNECT {\"verbose\":false,\"pedantic\":", Pedantic, "}\r\n"]),
            input(["PUB ", Subject, " 1\r\nxyz"], C)
        end)}
     || {Pedantic, Subject, Texts} <- [
            {"true", "a.*", [
                "-ERR 'Invalid Publish Subject'\r\n", "-ERR 'Unknown Protocol Operation'\r\n"
            ]},
            {"true", "a.b", ["-ERR 'Unknown Protocol Operation'\r\n"]},
            {"false", "a.*", ["-ERR 'Unknown Protocol Operation'\r\n"]}
        ]
    ].

deliveries_go_on_until_the_broker_has_unsubscribed_test() ->
    C0 = open([?CONNECT, "SUB a 1\r\nUNSUB 1\r\n"]),
    Deliver = {deliver, [delivery(<<"a">>, <<"a">>, <<"x">>)]},
    {<<"MSG a 1 1\r\nx\r\n">>, C1} = events([Deliver], C0),
    {<<>>, _} = events([{unsubscribed, {undefined, <<"a">>}}, Deliver], C1).

%% docs/protocol.md section 1: an unknown text closes three official clients for good.
%% What was published before an operation is delivered as if that had not come yet.
messages_come_before_later_operations_test_() ->
    Copy = {deliver, [delivery(<<"a">>, <<"a">>, <<"x">>)]},
    Msgs = fun(Sids) -> iolist_to_binary([["MSG a ", Sid, " 1\r\nx\r\n"] || Sid <- Sids]) end,
    [
        {Before ++ Then, fun() ->
            C0 = set(barrier, wait, open([?CONNECT, Before])),
            {<<>>, C1} = input([Then, "PING\r\n"], C0),
            {Out, C2} = events([Copy, barrier], C1),
            ?assertEqual(Msgs(Sids), Out),
            %% the PING has a barrier of its own
            {<<"PONG\r\n">>, C3} = events([barrier], C2),
            {Later, _} = events([Copy], C3),
            ?assertEqual(Msgs(LaterSids), Later)
        end}
     || {Before, Then, Sids, LaterSids} <- [
            {"SUB a 1\r\nPUB a 1\r\nx\r\n", "SUB a 2\r\n", ["1"], ["1", "2"]},
            {"SUB a 1\r\n", "PUB a 1\r\nx\r\nSUB a 2\r\n", ["1"], ["1", "2"]},
            {"SUB a 1\r\nSUB a 2\r\nPUB a 1\r\nx\r\n", "UNSUB 2\r\n", ["1", "2"], ["1"]},
            %% others may have published
            {"SUB a 1\r\nSUB a 2\r\n", "UNSUB 2\r\n", ["1", "2"], ["1"]},
            {"SUB a 1\r\nUNSUB 1 9\r\nPUB a 1\r\nx\r\n", "UNSUB 1\r\n", ["1"], []},
            {"SUB a 1\r\nPUB a 1\r\nx\r\n", "UNSUB 1 1\r\n", ["1"], []},
            {"SUB a 1\r\nPUB a 1\r\nx\r\n", "UNSUB 1\r\nSUB a 2\r\n", ["1"], ["2"]},
            %% one for all that follow
            {"SUB a 1\r\nSUB a 2\r\nSUB a 3\r\n", "UNSUB 2\r\nUNSUB 3\r\nSUB a 4\r\n", ["1", "2", "3"], ["1", "4"]}
        ]
    ].

%% The sid is free when the last message of its subscription has been published, not when it has come.
a_sid_is_free_after_the_last_message_test() ->
    C0 = set(barrier, wait, open([?CONNECT, "SUB a 1\r\nUNSUB 1 1\r\n"])),
    {<<>>, C1} = input("PUB a 1\r\nx\r\nSUB b 1\r\n", C0),
    Deliver = fun(Topic) -> {deliver, [delivery(Topic, Topic, <<"x">>)]} end,
    {<<"MSG a 1 1\r\nx\r\n">>, C2} = events([Deliver(<<"a">>), barrier], C1),
    {<<"MSG b 1 1\r\nx\r\n">>, _} = events([Deliver(<<"b">>)], C2).

%% Nothing can be on its way that concerns them.
operations_that_wait_for_nothing_test_() ->
    [
        {Text, fun() ->
            C0 = set(barrier, wait, open(?CONNECT)),
            {<<>>, _} = input(Text, C0),
            ?assertNot(lists:member(barrier, calls()))
        end}
     || Text <- [
            "SUB a 1\r\nSUB a 2\r\nSUB b 3\r\nSUB a q 4\r\n",
            "PUB a 0\r\n\r\nSUB a 1\r\nUNSUB 1\r\n",
            "SUB a 1\r\nUNSUB 1 5\r\nUNSUB 2\r\nUNSUB 3 5\r\n",
            %% a request of some clients
            "PUB a 0\r\n\r\nSUB r 1\r\nUNSUB 1 1\r\nPUB b r 0\r\n\r\nSUB s 2\r\nUNSUB 2 1\r\n"
        ]
    ].

the_host_closes_test_() ->
    [
        {atom_to_list(Reason), fun() ->
            ?assertEqual({stop, Reason, Text}, events([{close, Reason}], open(?CONNECT)))
        end}
     || {Reason, Text} <- [
            {kicked, <<>>},
            {upstream_lost, <<>>},
            {user_authentication_expired, <<"-ERR 'User Authentication Expired'\r\n">>}
        ]
    ].

what_the_host_was_not_given_is_its_own_at_the_end_test() ->
    Channel = open(?CONNECT),
    ok = nats_gateway_channel:terminate(kicked, [first, second], Channel),
    ?assertEqual([{undelivered, [first, second]}, {disconnect, kicked}], calls()),
    ok = nats_gateway_channel:terminate(kicked, [], Channel),
    ?assertEqual([{disconnect, kicked}], calls()).

timeouts_test() ->
    {_, New} = channel(),
    ?assertMatch({ok, <<"PING\r\n">>, {ready, infinity}, _}, handle_timeout(heartbeat, New)),
    ?assertMatch({stop, stale_connection, _, _}, handle_timeout(heartbeat_wait, New)),
    ?assertMatch({stop, authentication_timeout, _, _}, handle_timeout(authentication, New)),
    {stop, idle_timeout, Silent, _} = handle_timeout(idle, New),
    ?assertEqual(<<>>, iolist_to_binary(Silent)),
    Connected = open(?CONNECT),
    ?assertMatch({ok, [], {ready, infinity}, _}, handle_timeout(authentication, Connected)),
    ?assertMatch({ok, [], {ready, infinity}, _}, handle_timeout(idle, Connected)).

%% From INFO to CONNECT, and from PING to PONG.
round_trips_test() ->
    {_, New} = channel(),
    ?assertEqual(unknown, nats_gateway_channel:rtt(New)),
    timer:sleep(20),
    {<<>>, Connected} = input(?CONNECT, New),
    OfConnect = nats_gateway_channel:rtt(Connected),
    ?assert(OfConnect >= 20_000_000),
    {<<>>, Unasked} = input("PONG\r\n", Connected),
    ?assertEqual(OfConnect, nats_gateway_channel:rtt(Unasked)),
    {ok, _, _, Pinged} = handle_timeout(heartbeat, Unasked),
    ?assertEqual(OfConnect, nats_gateway_channel:rtt(Pinged)),
    {<<>>, Ponged} = input("PONG\r\n", Pinged),
    ?assert(nats_gateway_channel:rtt(Ponged) < OfConnect).

only_protocol_1_hears_of_the_lame_duck_test() ->
    ?assertEqual([], nats_gateway_channel:lame_duck(open(?CONNECT))),
    Info = nats_gateway_channel:lame_duck(open("CONNECT {\"verbose\":false,\"protocol\":1}\r\n")),
    ?assertMatch({_, _}, binary:match(iolist_to_binary(Info), <<"\"ldm\":true">>)).

secrets_are_not_shown_test() ->
    {_, Channel} = channel(),
    {_, C} = input("CONNECT {\"user\":\"u\",\"pass\":\"hush\",\"auth_token\":\"hush\"}\r\n", Channel),
    Shown = lists:flatten(io_lib:format("~p", [nats_gateway_channel:info(C)])),
    ?assertEqual(nomatch, string:find(Shown, "hush")),
    ?assertNotEqual(nomatch, string:find(Shown, "<<\"u\">>")).

%% -------------------------------------------------------------------------------------------
%% Logins of the gateway's own

login(Methods) -> login(Methods, #{}).

login(Methods, Spec) ->
    {ok, Login} = nats_gateway_login:new(Spec#{methods => Methods}),
    Login.

user(Name, Rules) ->
    {ok, Password} = nats_gateway_login:secret(<<"p">>),
    All = #{allow => all, deny => []},
    #{
        user => Name,
        password => Password,
        nkey => undefined,
        rules => maps:merge(
            #{publish => All, subscribe => All, allow_responses => undefined}, Rules
        )
    }.

users(Users) -> #{login => login([{users, Users}]), auth_required => true}.

connect(User) -> connect(User, "").

connect(User, More) ->
    ["CONNECT {\"verbose\":false,\"pedantic\":false,\"user\":\"", User, "\",\"pass\":\"p\"", More, "}\r\n"].

%% The host is told who it is, and not asked to find out.
an_accepted_login_goes_to_the_host_test() ->
    {_, Channel} = channel(users([user(<<"u">>, #{})])),
    {<<>>, Logged} = input(connect("u"), Channel),
    ?assertMatch([{connect, #{user := <<"u">>}}], calls()),
    #{client := Client} = nats_gateway_channel:info(Logged),
    ?assertMatch(#{login := #{method := user, username := <<"u">>}}, Client),
    ?assertNot(is_map_key(nonce, Client)).

a_refused_login_never_reaches_the_host_test() ->
    {_, Channel} = channel(users([user(<<"u">>, #{})])),
    ?assertEqual(
        {stop, authorization_violation, <<"-ERR 'Authorization Violation'\r\n">>},
        input([connect("x"), "PING\r\nPUB a 0\r\n\r\n"], Channel)
    ),
    ?assertEqual([], calls()).

nothing_of_a_login_is_shown_test() ->
    {_, Channel} = channel((users([user(<<"u">>, #{})]))#{fake => #{}}),
    {<<>>, Logged} = input(
        connect("u", ",\"jwt\":\"s3cr3t\",\"sig\":\"s3cr3t\",\"auth_token\":\"s3cr3t\",\"nkey\":\"s3cr3t\""), Channel
    ),
    Shown = lists:flatten(io_lib:format("~p", [nats_gateway_channel:info(Logged)])),
    ?assertEqual(nomatch, string:find(Shown, "s3cr3t")),
    ?assertEqual(nomatch, string:find(Shown, "pass")).

%% Whoever watches the gateway may see it if he asks for it. It is in no report of a crash.
a_jwt_is_described_and_not_shown_test() ->
    [Operator, Account, User] = [nats_gateway_credentials:pair(Role) || Role <- [operator, account, user]],
    {ok, Trust} = nats_gateway_jwt:trust(
        [nats_gateway_credentials:key(Operator)],
        [{undefined, nats_gateway_credentials:account(Account, #{nats => #{}}, Operator)}]
    ),
    Claims = #{name => <<"ann">>, nats => nats_gateway_credentials:nats(#{})},
    Jwt = nats_gateway_credentials:user(User, Claims, Account),
    {Info, Channel} = channel(#{login => login([{jwt, Trust}]), auth_required => true}),
    Sig = nats_gateway_credentials:sign(nonce_of(Info), User),
    {<<>>, Logged} = input(["CONNECT {\"verbose\":false,\"jwt\":\"", Jwt, "\",\"sig\":\"", Sig, "\"}\r\n"], Channel),
    Key = nats_gateway_credentials:key(Account),
    ?assertMatch(
        #{jwt := Jwt, issuer_key := Key, name_tag := <<"ann">>, tags := [], account := Key},
        nats_gateway_channel:description(Logged)
    ),
    #{client := #{login := Login}} = nats_gateway_channel:info(Logged),
    ?assertMatch(#{account := Key}, Login),
    ?assertNot(is_map_key(jwt, Login)).

nonce_of(Info) ->
    {match, [Nonce]} = re:run(Info, "\"nonce\":\"([^\"]+)\"", [{capture, all_but_first, binary}]),
    Nonce.

an_nkey_signs_the_nonce_of_its_info_test() ->
    Pair = nats_gateway_credentials:pair(user),
    Key = nats_gateway_credentials:key(Pair),
    Settings = #{login => login([{nkey, [Key]}]), auth_required => true},
    {Info, Channel} = channel(Settings),
    Connect = fun(Nonce) ->
        Sig = nats_gateway_credentials:sign(Nonce, Pair),
        ["CONNECT {\"nkey\":\"", Key, "\",\"sig\":\"", Sig, "\"}\r\n"]
    end,
    {<<"+OK\r\n">>, _} = input(Connect(nonce_of(Info)), Channel),
    {Another, _} = channel(Settings),
    ?assertMatch({stop, authorization_violation, _}, input(Connect(nonce_of(Another)), Channel)),
    {Plain, _} = channel(users([user(<<"u">>, #{})])),
    ?assertEqual(nomatch, binary:match(Plain, <<"nonce">>)).

%% As the WebSocket request brings it.
a_cookie_stands_in_for_the_jwt_test() ->
    [Operator, Account, User] = [nats_gateway_credentials:pair(R) || R <- [operator, account, user]],
    {ok, Trust} = nats_gateway_jwt:trust(
        [nats_gateway_credentials:key(Operator)],
        [{undefined, nats_gateway_credentials:account(Account, #{}, Operator)}]
    ),
    Jwt = nats_gateway_credentials:user(User, #{bearer_token => true}, Account),
    Config = (nats_gateway_file:defaults())#{login := login([{jwt, Trust}]), auth_required := true},
    Login = fun(Cookies, Connect) ->
        {ok, _, _, Channel} = nats_gateway_channel:init(
            nats_gateway_host_fake,
            maps:merge(nats_gateway_host_fake:client(Config), Cookies#{
                transport => ws, listener => <<"ws:test">>
            })
        ),
        input(Connect, Channel)
    end,
    Cookie = #{cookies => #{jwt => Jwt}},
    ?assertMatch({<<"+OK\r\n">>, _}, Login(Cookie, "CONNECT {}\r\n")),
    ?assertMatch({<<"+OK\r\n">>, _}, Login(Cookie, "CONNECT {\"jwt\":\"\"}\r\n")),
    ?assertMatch({stop, authorization_violation, _}, Login(Cookie, "CONNECT {\"jwt\":\"x\"}\r\n")),
    ?assertMatch({stop, authorization_violation, _}, Login(#{}, "CONNECT {}\r\n")),
    {_, Logged} = Login(Cookie, "CONNECT {}\r\n"),
    Shown = io_lib:format("~p", [nats_gateway_channel:info(Logged)]),
    ?assertEqual(nomatch, string:find(Shown, Jwt)).

a_login_ends_at_its_deadline_test_() ->
    [
        {atom_to_list(Reason), fun() -> ends(Reason, Text) end}
     || {Reason, Text} <- [
            {user_authentication_expired, <<"-ERR 'User Authentication Expired'\r\n">>},
            {account_authentication_expired, <<"-ERR 'Account Authentication Expired'\r\n">>}
        ]
    ].

%% The connection keeps what was said last. So what returns only a channel must not change it.
only_answers_change_what_comes_next_test_() ->
    Ends = fun(More) -> element(2, channel(#{fake => More#{session => #{expires => 60000}}})) end,
    {<<>>, Ready} = input(?CONNECT, Ends(#{})),
    {<<>>, Blocked} = input("PING\r\n", set(barrier, wait, Ready)),
    {<<>>, Connecting} = input(?CONNECT, Ends(#{connect => wait})),
    {_, Behind} = events([message(binary:copy(<<"x">>, 100000))], subscribed(20, ?CONNECT)),
    Functions = [
        fun(C) -> nats_gateway_channel:identify(nossl, none, C) end,
        fun nats_gateway_channel:leave/1,
        fun nats_gateway_channel:resume/1,
        fun nats_gateway_channel:sample/1,
        fun(C) -> nats_gateway_channel:report(#{octets_sent => 1}, C) end
    ],
    [
        fun() ->
            Before = {Next, _} = says(Channel),
            ?assertEqual(HasEnd, ends_at(Channel) =/= infinity),
            [?assertEqual(Before, says(Function(Channel))) || Function <- Functions]
        end
     || {Next, HasEnd, Channel} <- [
            {ready, false, Ends(#{})},
            {ready, true, Ready},
            {blocked, true, Blocked},
            {blocked, false, Connecting},
            {behind, false, Behind}
        ]
    ].

%% Of EMQX's authentication, and longer than a timer can wait.
a_login_of_the_broker_ends_at_its_deadline_test() ->
    Ms = 90 * 24 * 3600 * 1000,
    {_, Channel} = channel(#{fake => #{session => #{expires => Ms}}}),
    {<<>>, Logged} = input(?CONNECT, Channel),
    Left = ends_at(Logged) - erlang:monotonic_time(millisecond),
    ?assert(Left > Ms - 10000 andalso Left =< Ms),
    {stop, user_authentication_expired, Out, _} = handle_timeout(login, Logged),
    ?assertEqual(<<"-ERR 'User Authentication Expired'\r\n">>, iolist_to_binary(Out)).

ends(Reason, Text) ->
    [Operator, Account, User] = [nats_gateway_credentials:pair(R) || R <- [operator, account, user]],
    Ends = #{exp => erlang:system_time(second) + 1000},
    {OfUser, OfAccount} =
        case Reason of
            user_authentication_expired -> {Ends, #{}};
            account_authentication_expired -> {#{}, Ends}
        end,
    {ok, Trust} = nats_gateway_jwt:trust(
        [nats_gateway_credentials:key(Operator)],
        [{undefined, nats_gateway_credentials:account(Account, OfAccount#{nats => #{}}, Operator)}]
    ),
    Jwt = nats_gateway_credentials:user(
        User, OfUser#{nats => nats_gateway_credentials:nats(#{bearer_token => true})}, Account
    ),
    {_, Channel} = channel(#{login => login([{jwt, Trust}]), auth_required => true}),
    ?assertEqual(infinity, ends_at(Channel)),
    {<<>>, Logged} = input(["CONNECT {\"verbose\":false,\"jwt\":\"", Jwt, "\"}\r\n"], Channel),
    Left = ends_at(Logged) - erlang:monotonic_time(millisecond),
    ?assert(Left > 990000 andalso Left =< 1000000),
    {stop, Reason, Out, _} = handle_timeout(login, Logged),
    ?assertEqual(Text, iolist_to_binary(Out)).

permissions_hold_for_what_follows_in_the_segment_test() ->
    Rules = #{
        publish => #{allow => [<<"a">>], deny => []},
        subscribe => #{allow => all, deny => [<<"s">>]}
    },
    {_, Channel} = channel(users([user(<<"u">>, Rules)])),
    {Out, _} = input([connect("u"), "PUB a 0\r\n\r\nPUB b 0\r\n\r\nPUB a 0\r\n\r\nSUB s 1\r\nSUB t 2\r\n"], Channel),
    ?assertEqual(
        <<
            "-ERR 'Permissions Violation for Publish to \"b\"'\r\n"
            "-ERR 'Permissions Violation for Subscription to \"s\"'\r\n"
        >>,
        Out
    ),
    ?assertMatch(
        [
            {connect, _},
            {publish, [#pub{subject = <<"a">>}, #pub{subject = <<"a">>}], _},
            {subscribe, {undefined, <<"t">>}, _}
        ],
        calls()
    ).

%% Indices of the host's rejections are those of what it was given.
rejections_of_the_host_among_denied_ones_test() ->
    {_, Channel} = channel(users([user(<<"u">>, #{publish => #{allow => [<<"a.*">>], deny => []}})])),
    {<<"+OK\r\n">>, Logged} = input(connect("u", ",\"verbose\":true"), Channel),
    Answering = set(publish, {ok, [{2, denied}]}, Logged),
    {Out, _} = input("PUB x 0\r\n\r\nPUB a.1 0\r\n\r\nPUB y 0\r\n\r\nPUB a.2 0\r\n\r\nPUB a.3 0\r\n\r\n", Answering),
    Denied = fun(S) -> ["-ERR 'Permissions Violation for Publish to \"", S, "\"'\r\n"] end,
    ?assertEqual(
        iolist_to_binary([Denied("x"), "+OK\r\n", Denied("y"), Denied("a.2"), "+OK\r\n"]), Out
    ).

denied_deliveries_are_dropped_test() ->
    Rules = #{subscribe => #{allow => all, deny => [<<"a.no">>]}},
    {_, Channel} = channel(users([user(<<"u">>, Rules)])),
    {<<>>, Subscribed} = input([connect("u"), "SUB a.* 1\r\n"], Channel),
    {Out, _} = events(
        [{deliver, [delivery(<<"a/+">>, <<"a/no">>, <<"x">>), delivery(<<"a/+">>, <<"a/yes">>, <<"y">>)]}],
        Subscribed
    ),
    ?assertEqual(<<"MSG a.yes 1 1\r\ny\r\n">>, Out).

%% Every form that a reply subject comes in from the broker.
%% By EMQX's automatic subscriptions, or over REST.
denied_deliveries_of_what_others_have_subscribed_are_dropped_test_() ->
    [
        ?_test(begin
            Rules = #{subscribe => #{allow => [<<"a">>], deny => [<<"secret.>">>]}},
            {_, Channel} = channel(users([user(<<"u">>, Rules)])),
            {<<>>, Logged} = input(connect("u"), Channel),
            {<<>>, Added} = events([{added, {undefined, Filter}}], Logged),
            {Out, _} = events([{deliver, [delivery(Filter, Topic, <<"x">>)]}], Added),
            ?assertEqual({Filter, Expected}, {Filter, Out})
        end)
     || {Filter, Topic, Expected} <- [
            {<<"#">>, <<"b">>, <<"MSG b 2147483647 1\r\nx\r\n">>},
            {<<"#">>, <<"secret/x">>, <<>>},
            {<<"secret/x">>, <<"secret/x">>, <<>>}
        ]
    ].

%% The client is told of the end of what it has asked for itself.
what_others_have_subscribed_is_removed_in_silence_test() ->
    Key = {undefined, <<"a">>},
    {<<>>, C1} = events([{added, Key}], open(?CONNECT)),
    {<<>>, C2} = events([{removed, Key}], C1),
    {<<>>, C3} = input("SUB a 2147483647\r\n", C2),
    {<<>>, C4} = events([{added, {undefined, <<"b">>}}], C3),
    {<<>>, C5} = input("SUB b 7\r\n", C4),
    Denied = fun(Subject) ->
        iolist_to_binary(["-ERR 'Permissions Violation for Subscription to \"", Subject, "\"'\r\n"])
    end,
    {OfA, C6} = events([{removed, Key}], C5),
    ?assertEqual(Denied("a"), OfA),
    {OfB, C7} = events([{removed, {undefined, <<"b">>}}], C6),
    ?assertEqual(Denied("b"), OfB),
    ?assertEqual([], nats_gateway_channel:subscriptions(C7)).

%% What a host is told of the channel when others ask something of it.
a_host_may_ask_what_the_login_allows_test_() ->
    Rules = #{subscribe => #{allow => [<<"a.>">>, <<"q v1">>], deny => [<<"a.no">>]}},
    [
        ?_test(begin
            {_, Channel} = channel((users([user(<<"u">>, Rules)]))#{mountpoint => <<"m/">>}),
            {<<>>, Logged} = input(connect("u"), Channel),
            _ = calls(),
            {ok, {ok, [], {ready, infinity}, _}} = nats_gateway_channel:handle_call({may_subscribe, Key}, Logged),
            ?assertEqual([{may_subscribe, Key, Allowed}], calls())
        end)
     || {Key, Allowed} <- [
            {{undefined, <<"m/a/b">>}, true},
            {{undefined, <<"m/a/+">>}, true},
            {{undefined, <<"m/a/no">>}, false},
            {{undefined, <<"m/#">>}, false},
            {{undefined, <<"m/q">>}, false},
            {{<<"v1">>, <<"m/q">>}, true}
        ]
    ].

a_host_may_ask_for_the_sids_of_a_key_test() ->
    Channel = open([?CONNECT, "SUB a 10\r\nSUB a 9\r\nSUB b 1\r\n"]),
    Key = {undefined, <<"a">>},
    {ok, _} = nats_gateway_channel:handle_call({sids, Key}, Channel),
    ?assertEqual([{sids, Key, [<<"9">>, <<"10">>]}], calls()).

%% Nobody waits for the answer.
a_host_may_ask_itself_test() ->
    {<<>>, _} = events([{call, {sids, {undefined, <<"a">>}}}], open(?CONNECT)),
    ?assertEqual([{sids, {undefined, <<"a">>}, []}], calls()).

the_host_knows_the_sid_of_a_new_key_test() ->
    {<<>>, _} = input("SUB a 1\r\nSUB a 2\r\nSUB b 3\r\n", open(?CONNECT)),
    ?assertMatch(
        [
            {subscribe, {undefined, <<"a">>}, #{sid := <<"1">>}},
            {subscribe, {undefined, <<"b">>}, #{sid := <<"3">>}}
        ],
        calls()
    ).

%% Subscriptions that somebody else has made are under subjects, too.
another_login_may_not_have_what_others_have_subscribed_test() ->
    Less = #{subscribe => #{allow => [<<"*">>, <<"m.a.*">>], deny => []}},
    Settings = users([user(<<"u">>, #{}), user(<<"v">>, Less)]),
    {_, Channel} = channel(Settings#{mountpoint => <<"m/">>}),
    {<<>>, Logged} = input(connect("u"), Channel),
    Filters = [<<"m/#">>, <<"m/+/x">>, <<"m/b">>, <<"m/m/a/+">>],
    {<<>>, Added} = events([{added, {undefined, Filter}} || Filter <- Filters], Logged),
    {_, Again} = input(connect("v"), Added),
    ?assertEqual(
        [<<"b">>, <<"m.a.*">>],
        lists:sort([Subject || #{subject := Subject} <- nats_gateway_channel:subscriptions(Again)])
    ).

requests_may_be_answered_test_() ->
    [
        ?_test(begin
            Rules = #{
                publish => #{allow => all, deny => []},
                allow_responses => #{max => 1, expires => 60000}
            },
            {_, Channel} = channel(users([user(<<"u">>, Rules)])),
            {<<>>, Subscribed} = input([connect("u"), "SUB svc 1\r\n"], Channel),
            Delivery = (delivery(<<"svc">>, <<"svc">>, <<>>))#delivery{reply = Reply},
            {Msg, Asked} = events([{deliver, [Delivery]}], Subscribed),
            [<<"MSG">>, <<"svc">>, <<"1">>, Subject | _] = binary:split(Msg, <<" ">>, [global]),
            Answer = ["PUB ", Subject, " 0\r\n\r\n"],
            {Once, Answered} = input(Answer, Asked),
            ?assertEqual(<<>>, Once),
            {Twice, _} = input(Answer, Answered),
            ?assertMatch({0, _}, binary:match(Twice, <<"-ERR 'Permissions Violation for Publish to ">>))
        end)
     || Reply <- [
            {subject, <<"_INBOX.x">>},
            {topic, <<"inbox/x">>, undefined},
            {topic, <<"inbox/x y">>, undefined},
            {topic, <<"inbox/x">>, <<1, 2, 3>>}
        ]
    ].

%% A channel of a gateway with these settings, and the CONNECT of a user.
by_jwt(OfAccount, OfUser, Settings) ->
    [Operator, Account, User] = [nats_gateway_credentials:pair(R) || R <- [operator, account, user]],
    {ok, Trust} = nats_gateway_jwt:trust(
        [nats_gateway_credentials:key(Operator)],
        [{undefined, nats_gateway_credentials:account(Account, OfAccount, Operator)}]
    ),
    Jwt = nats_gateway_credentials:user(User, OfUser#{bearer_token => true}, Account),
    {_, Channel} = channel(Settings#{login => login([{jwt, Trust}]), auth_required => true}),
    {["CONNECT {\"verbose\":false,\"jwt\":\"", Jwt, "\"}\r\n"], Channel}.

limits_of_a_login_do_not_raise_those_of_the_gateway_test() ->
    Limits = fun(OfUser) ->
        {Connect, Channel} = by_jwt(#{}, OfUser, #{max_payload_size => 10, max_subscriptions => 2}),
        {<<>>, Logged} = input(Connect, Channel),
        #decoder{max_payload = MaxPayload} = nats_gateway_channel:decoder(Logged),
        {Out, _} = input("SUB a 1\r\nSUB b 2\r\nSUB c 3\r\n", Logged),
        {MaxPayload, length(binary:matches(Out, <<"maximum subscriptions exceeded">>))}
    end,
    ?assertEqual({10, 1}, Limits(#{payload => 100, subs => 100})),
    ?assertEqual({10, 1}, Limits(#{})),
    ?assertEqual({5, 2}, Limits(#{payload => 5, subs => 1})),
    ?assertEqual({0, 2}, Limits(#{payload => 0, subs => 1})).

%% The log, as messages.
log(#{msg := {report, Report}}, #{config := Test}) -> Test ! {logged, Report};
log(_, _) -> ok.

refusal_of(OfAccount, OfUser) ->
    {Connect, Channel} = by_jwt(OfAccount, OfUser, #{}),
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => self(), level => all}),
    try
        {stop, Reason, _} = input(Connect, Channel),
        receive
            {logged, Report = #{msg := login_refused}} -> {Reason, Report}
        after 5000 -> Reason
        end
    after
        logger:remove_handler(?MODULE)
    end.

%% What no tool of NATS leaves out, but tokens for EMQX's own gateway may.
a_limit_that_is_missing_is_named_in_the_log_test_() ->
    {setup,
        fun() ->
            [
                element(2, {ok, _} = apply(Module, Function, Arguments))
             || #{start := {Module, Function, Arguments}} <- nats_gateway_accounts:child_specs()
            ]
        end,
        fun(Pids) -> [gen_server:stop(Pid) || Pid <- lists:reverse(Pids)] end, [
            ?_assertMatch(
                {maximum_account_connections_exceeded, #{
                    method := jwt,
                    reason := account_is_full,
                    limit := 0,
                    account := <<"A", _/binary>>,
                    zero_or_missing := <<"nats.limits.conn of the account">>
                }},
                refusal_of(#{limits => #{conn => null}}, #{})
            ),
            ?_assertMatch(
                {maximum_subscriptions_exceeded, #{
                    method := jwt,
                    reason := no_more_subscriptions,
                    limit := 0,
                    zero_or_missing :=
                        <<"nats.limits.subs of the account, nats.subs of the user">>
                }},
                refusal_of(#{limits => #{subs => null}}, #{subs => null})
            ),
            ?_assertMatch(
                {authorization_violation, #{
                    reason := bad_jwt, detail := <<"a permission is not a valid subject">>
                }},
                refusal_of(#{}, #{pub => #{allow => [<<"a..b">>]}})
            )
        ]}.

%% A change of the settings keeps the limit of the login.
configure_keeps_the_limit_of_the_login_test() ->
    {_, Channel} = channel(users([user(<<"u">>, #{})])),
    {<<>>, Logged} = input(connect("u", ",\"protocol\":1"), Channel),
    {ok, Info, _, Changed} = nats_gateway_channel:configure(
        (nats_gateway_file:defaults())#{max_payload_size := 5}, Logged
    ),
    ?assertNotEqual(nomatch, binary:match(iolist_to_binary(Info), <<"\"max_payload\":5">>)),
    ?assertMatch(#decoder{max_payload = 5}, nats_gateway_channel:decoder(Changed)).

%% -------------------------------------------------------------------------------------------
%% Settings that change while a client is there

configure(Settings, Channel) ->
    nats_gateway_channel:configure(maps:merge(nats_gateway_file:defaults(), Settings), Channel).

%% What its INFO has not told of a login it can't do. It is not told so, but reconnects.
who_was_told_of_no_login_is_closed_test_() ->
    [
        ?_assertMatch({stop, settings_changed, [[]], _}, configure(Settings, Channel))
     || {_, Channel} <- [channel()], Settings <- [users([user(<<"u">>, #{})]), #{auth_required => true}]
    ].

who_was_told_nothing_to_sign_is_closed_test() ->
    Key = nats_gateway_credentials:public(user),
    {_, Channel} = channel(users([user(<<"u">>, #{})])),
    ?assertMatch(
        {stop, settings_changed, _, _},
        configure(#{login => login([{nkey, [Key]}]), auth_required => true}, Channel)
    ).

%% A password that was taken away is worth nothing to who has not logged in yet.
the_first_login_is_one_under_the_present_settings_test() ->
    {_, Channel} = channel(users([user(<<"u">>, #{})])),
    {ok, [], {ready, infinity}, Changed} = configure(users([user(<<"v">>, #{})]), Channel),
    ?assertMatch({stop, authorization_violation, _}, input(connect("u"), Changed)),
    {<<>>, _} = input(connect("v"), Changed).

a_later_login_is_one_under_the_present_settings_test() ->
    {_, Channel} = channel(users([user(<<"u">>, #{}), user(<<"w">>, #{})])),
    {<<>>, Logged} = input([connect("u"), "SUB a 1\r\n"], Channel),
    {ok, [], {ready, infinity}, Changed} = configure(users([user(<<"v">>, #{})]), Logged),
    ?assertMatch({stop, authorization_violation, _}, input(connect("w"), Changed)),
    {<<>>, Again} = input(connect("v"), Changed),
    {ok, [], {ready, infinity}, Less} = configure((users([user(<<"w">>, #{})]))#{mountpoint => <<"m/">>}, Again),
    ?assertMatch({stop, session_changed, _}, input(connect("w"), Less)).

where_no_login_is_demanded_any_more_none_is_needed_test() ->
    {_, Channel} = channel(#{auth_required => true}),
    {ok, [], {ready, infinity}, Changed} = configure(#{mountpoint => <<"m/">>}, Channel),
    {<<"+OK\r\n">>, _} = input("SUB a 1\r\n", Changed),
    ?assertMatch([{connect, _}, {subscribe, _, _}], calls()).

who_was_told_of_another_limit_hears_of_the_present_one_test_() ->
    [
        ?_test(begin
            {_, Channel} = channel(),
            {ok, [], {ready, infinity}, Changed} = configure(#{max_payload_size => 5}, Channel),
            {Out, _} = input([Connect, "PING\r\nPING\r\n"], Changed),
            ?assertEqual(Told, binary:match(Out, <<"\"max_payload\":5">>) =/= nomatch)
        end)
     || {Connect, Told} <- [
            {"CONNECT {\"verbose\":false,\"protocol\":1}\r\n", true}, {?CONNECT, false}
        ]
    ].

%% Subscriptions that the second login may not have end, before the host is asked for the others.
another_login_loses_what_it_may_not_have_test() ->
    Less = #{subscribe => #{allow => [<<"b">>], deny => []}},
    {_, Channel} = channel(users([user(<<"u">>, #{}), user(<<"v">>, Less)])),
    {<<>>, Subscribed} = input([connect("u"), "SUB a 1\r\nSUB b 2\r\nSUB a q 3\r\n"], Channel),
    _ = calls(),
    {Out, Again} = input(connect("v"), Subscribed),
    ?assertEqual(
        lists:sort([
            <<"-ERR 'Permissions Violation for Subscription to \"a\"'">>,
            <<"-ERR 'Permissions Violation for Subscription to \"a\" using queue \"q\"'">>
        ]),
        lists:sort(binary:split(Out, <<"\r\n">>, [global, trim]))
    ),
    ?assertMatch(
        [{disconnect, login_again}, {connect, _}, {subscribe_again, [{undefined, <<"b">>}], _}],
        calls()
    ),
    ?assertMatch([#{sid := <<"2">>}], nats_gateway_channel:subscriptions(Again)).

no_auth_user_needs_no_connect_test() ->
    Guest = user(<<"guest">>, #{publish => #{allow => [<<"a">>], deny => []}}),
    {Info, Channel} = channel(#{
        login => login([{users, [Guest]}], #{no_auth_user => <<"guest">>}), auth_required => false
    }),
    ?assertEqual(nomatch, binary:match(Info, <<"auth_required">>)),
    {Out, Logged} = input("PUB a 0\r\n\r\nPUB b 0\r\n\r\n", Channel),
    ?assertEqual(<<"+OK\r\n-ERR 'Permissions Violation for Publish to \"b\"'\r\n">>, Out),
    #{client := #{login := Login}} = nats_gateway_channel:info(Logged),
    ?assertMatch(#{method := no_auth_user, username := <<"guest">>}, Login).

%% -------------------------------------------------------------------------------------------
%% Much for one client

%% Subscriptions of as many sids on one subject, and a message for it.
subscribed(Sids, Connect) ->
    Subs = [["SUB a ", integer_to_list(Sid), "\r\n"] || Sid <- lists:seq(1, Sids)],
    {_, Channel} = input([Connect, Subs], element(2, channel())),
    _ = calls(),
    Channel.

message(Payload) -> {deliver, [delivery(<<"a">>, <<"a">>, Payload)]}.

frames(Bytes) -> length(binary:matches(Bytes, <<"MSG a ">>)).

%% However large a message is and however many get it, a megabyte of it is made at once.
output_comes_in_slices_test_() ->
    [
        {timeout, 60, fun() ->
            Channel = subscribed(Sids, ?CONNECT),
            Payload = binary:copy(<<"x">>, Size),
            {First, Behind} = events([message(Payload)], Channel),
            {Others, Done} = continued(Behind),
            Slices = [First | Others],
            lists:foreach(
                fun(Slice) -> ?assert(byte_size(Slice) < 1048576 + max(262144, Size) + 100) end,
                Slices
            ),
            ?assertEqual(Sids, lists:sum([frames(Slice) || Slice <- Slices])),
            ?assertEqual(0, nats_gateway_channel:unsent(Done)),
            ?assertMatch(#{messages_sent := Sids}, nats_gateway_channel:stats(Done))
        end}
     || {Sids, Size} <- [{1, 1}, {1, 3000000}, {2, 1048576}, {3, 1048576}, {300, 4095}, {5000, 400}, {3000, 4096}]
    ].

%% About what is still to come, so that it can be refused before it is made.
what_is_left_is_known_test() ->
    Channel = subscribed(1000, ?CONNECT),
    {First, Behind} = events([message(binary:copy(<<"x">>, 100000))], Channel),
    Left = 1000 * 100000 - byte_size(First),
    Unsent = nats_gateway_channel:unsent(Behind),
    ?assert(Unsent > Left),
    ?assert(Unsent < Left + 1000 * 200).

what_comes_while_a_client_is_behind_comes_after_it_test() ->
    Channel = subscribed(20, ?CONNECT),
    Large = binary:copy(<<"x">>, 100000),
    {First, C1} = events([message(Large), message(<<"2">>)], Channel),
    ?assert(frames(First) < 20),
    ?assertEqual(behind, next(C1)),
    {<<>>, C2} = events([message(<<"3">>), {publish_rejected, <<"p">>, undefined, denied}], C1),
    %% The client's own input, too.
    {<<>>, C3} = input("PING\r\nSUB b 21\r\n", C2),
    {<<>>, C4} = events([message(<<"4">>)], C3),
    ?assertEqual([], calls()),
    {Others, Done} = continued(C4),
    All = iolist_to_binary([First | Others]),
    Small = fun(Payload) -> lists:duplicate(20, ["MSG a 1\r\n", Payload, "\r\n"]) end,
    Denied = <<"-ERR 'Permissions Violation for Publish to \"p\"'\r\n">>,
    Expected = iolist_to_binary([Small("2"), Small("3"), Denied, Small("4"), "PONG\r\n"]),
    WithoutSids = re:replace(All, "MSG a [0-9]+ ", "MSG a ", [global, {return, binary}]),
    Tail = binary:part(WithoutSids, byte_size(WithoutSids), -byte_size(Expected)),
    ?assertEqual(Expected, Tail),
    ?assertEqual(20 * 4, frames(All)),
    ?assertMatch([barrier, {subscribe, _, _}], calls()),
    ?assertEqual(ready, next(Done)).

%% Only what an +OK has to come before.
what_comes_while_the_host_publishes_test_() ->
    Deliver = {deliver, [delivery(<<"a">>, <<"a">>, <<"x">>)]},
    [
        {Connect, fun() ->
            {_, C0} = input([Connect, "SUB a 1\r\n"], element(2, channel())),
            {<<>>, C1} = input("PUB b 0\r\n\r\n", set(publish, wait, C0)),
            ?assertEqual(blocked, next(C1)),
            {Meanwhile, C2} = events([Deliver], C1),
            ?assertEqual(At, Meanwhile),
            {Then, _} = events([{published, []}], C2),
            ?assertEqual(After, Then)
        end}
     || {Connect, At, After} <- [
            {?CONNECT, <<"MSG a 1 1\r\nx\r\n">>, <<>>},
            {"CONNECT {\"pedantic\":false}\r\n", <<>>, <<"+OK\r\nMSG a 1 1\r\nx\r\n">>}
        ]
    ].

%% What was held back for a +OK comes after it, in slices as well.
what_was_held_back_comes_in_slices_test() ->
    C0 = subscribed(20, "CONNECT {\"pedantic\":false}\r\n"),
    {<<>>, C1} = input("PUB p 1\r\n1\r\nPING\r\n", set(publish, wait, C0)),
    {<<>>, C2} = events([message(binary:copy(<<"x">>, 100000)) || _ <- [1, 2]], C1),
    ?assert(nats_gateway_channel:unsent(C2) > 4000000),
    {First, C3} = events([{published, []}], C2),
    ?assertMatch(<<"+OK\r\nMSG ", _/binary>>, First),
    {Others, Done} = continued(C3),
    All = iolist_to_binary([First | Others]),
    ?assertEqual(40, frames(All)),
    ?assertEqual(<<"PONG\r\n">>, binary:part(All, byte_size(All), -6)),
    ?assertEqual(0, nats_gateway_channel:unsent(Done)),
    ?assertEqual(ready, next(Done)).

%% The end of the broker's connection comes after what it had sent; a kick is one at once.
the_end_of_a_client_that_is_behind_test_() ->
    [
        fun() ->
            Channel = subscribed(20, ?CONNECT),
            {First, C1} = events([message(binary:copy(<<"x">>, 100000))], Channel),
            ?assertEqual(Expected, ended(First, handle_info({fake, events, [{close, Reason}]}, C1)))
        end
     || {Reason, Expected} <- [
            {upstream_lost, 20},
            {kicked, 11},
            {{error, discarded}, 11},
            {{error, takenover}, 11}
        ]
    ].

ended(Sent, {ok, Out, {behind, infinity}, Channel}) ->
    ended(iolist_to_binary([Sent | Out]), nats_gateway_channel:continue(Channel));
ended(Sent, {stop, _, Out, _}) ->
    frames(iolist_to_binary([Sent | Out])).

who_is_stale_gets_no_more_test() ->
    {_, Behind} = events([message(binary:copy(<<"x">>, 100000))], subscribed(20, ?CONNECT)),
    {stop, stale_connection, Out, _} = handle_timeout(heartbeat_wait, Behind),
    ?assertEqual(<<"-ERR 'Stale Connection'\r\n">>, iolist_to_binary(Out)).

%% Requests for what the gateway itself answers.
answers_for_many_sids_come_in_slices_test() ->
    Subs = [["SUB i ", integer_to_list(Sid), "\r\n"] || Sid <- lists:seq(1, 5000)],
    C0 = open([?CONNECT]),
    {_, C1} = input(Subs, C0),
    {First, C2} = input(["PUB $SYS.REQ.USER.INFO i 0\r\n\r\n" || _ <- [1, 2, 3]] ++ ["PING\r\n"], C1),
    ?assert(byte_size(First) < 1048576 + 262144),
    {Others, _} = continued(C2),
    All = iolist_to_binary([First | Others]),
    ?assertEqual(15000, length(binary:matches(All, <<"MSG i ">>))),
    ?assertEqual(<<"PONG\r\n">>, binary:part(All, byte_size(All), -6)),
    _ = calls().

%% -------------------------------------------------------------------------------------------
%% Passwords that take long to compare

passwords_test_() ->
    {foreach,
        fun() ->
            {ok, Pid} = nats_gateway_passwords:start_link(),
            true = unlink(Pid),
            Pid
        end,
        fun(Pid) ->
            Monitor = monitor(process, Pid),
            true = exit(Pid, kill),
            receive
                {'DOWN', Monitor, process, _, _} -> flush()
            end
        end,
        [
            {timeout, 30, Test}
         || Test <- [
                fun what_follows_a_password_waits_for_it/0,
                fun a_wrong_password_is_refused/0,
                fun no_time_of_the_client_passes/0,
                fun a_second_connect_is_compared_too/0,
                fun too_many_logins_close_without_a_text/0
            ]
        ]}.

%% Cost 10: some time passes.
hashed() ->
    Hash = nats_gateway_hashes:bcrypt(<<"w0rd">>, 10),
    {ok, Secret} = nats_gateway_login:secret(Hash),
    {ok, Login} = nats_gateway_login:new(#{methods => [{token, Secret}]}),
    {_, Channel} = channel(#{login => Login}),
    Channel.

connect_with(Token) ->
    ["CONNECT {\"verbose\":false,\"pedantic\":false,\"auth_token\":\"", Token, "\"}\r\n"].

verified(Take, Channel) ->
    receive
        {host, _} = Call -> error({unexpected, Call});
        Message -> Take(Message, Channel)
    after 10000 -> timeout
    end.

what_follows_a_password_waits_for_it() ->
    {<<>>, Channel} = input([connect_with("w0rd"), "PING\r\nPUB a 1\r\nx\r\n"], hashed()),
    ?assertEqual(blocked, next(Channel)),
    ?assert(nats_gateway_channel:is_verifying(Channel)),
    ?assertEqual([], calls()),
    %% what nobody waits for
    {ok, [], {blocked, infinity}, Channel} = handle_info(other, Channel),
    {ok, [], {blocked, infinity}, Channel} = nats_gateway_channel:handle_messages([other, another], Channel),
    {ok, Out, {ready, infinity}, NChannel} = verified(fun nats_gateway_channel:handle_info/2, Channel),
    ?assertEqual(<<"PONG\r\n">>, iolist_to_binary(Out)),
    ?assertEqual(ready, next(NChannel)),
    ?assertMatch([{connect, _}, barrier, {publish, _, _}], calls()).

a_wrong_password_is_refused() ->
    {<<>>, Channel} = input([connect_with("word"), "PING\r\n"], hashed()),
    Messages = fun(Message, Waiting) ->
        nats_gateway_channel:handle_messages([other, Message, another], Waiting)
    end,
    {stop, authorization_violation, Out, _} = verified(Messages, Channel),
    ?assertEqual(<<"-ERR 'Authorization Violation'\r\n">>, iolist_to_binary(Out)),
    ?assertEqual([], calls()).

no_time_of_the_client_passes() ->
    Before = hashed(),
    [
        ?assertMatch({stop, Reason, _, _}, handle_timeout(Timer, Before))
     || {Timer, Reason} <- [{authentication, authentication_timeout}, {idle, idle_timeout}]
    ],
    {<<>>, Channel} = input(connect_with("w0rd"), Before),
    [{ok, [], {blocked, infinity}, Channel} = handle_timeout(Timer, Channel) || Timer <- [authentication, idle]],
    %% the broker's part
    {ok, [], Waiting} = begin
        {_, Broker} = channel(#{fake => #{connect => wait}, auth_required => true}),
        {Out, Connecting} = input(connect_with("x"), Broker),
        {ok, binary_to_list(Out), Connecting}
    end,
    {ok, [], {blocked, infinity}, Waiting} = handle_timeout(authentication, Waiting).

a_second_connect_is_compared_too() ->
    {<<>>, Channel} = input(connect_with("w0rd"), hashed()),
    {ok, _, _, NChannel} = verified(fun nats_gateway_channel:handle_info/2, Channel),
    _ = calls(),
    {<<>>, Again} = input([connect_with("word"), "PING\r\n"], NChannel),
    ?assertMatch([{disconnect, login_again}], calls()),
    {stop, authorization_violation, _, _} = verified(fun nats_gateway_channel:handle_info/2, Again).

too_many_logins_close_without_a_text() ->
    Channel = hashed(),
    true = exit(whereis(nats_gateway_passwords), kill),
    {<<>>, NChannel} = input(connect_with("w0rd"), Channel),
    {stop, too_many_logins, Out, _} = verified(fun nats_gateway_channel:handle_info/2, NChannel),
    ?assertEqual(<<>>, iolist_to_binary(Out)).

%% -------------------------------------------------------------------------------------------
%% Header values that are not ASCII

header_values_test_() ->
    Name = <<"Zürich"/utf8>>,
    Delivery = (delivery(<<"a">>, <<"a">>, <<"x">>))#delivery{
        headers = {properties, [{<<"City">>, Name}], Name}
    },
    [
        {Lang, fun() ->
            Connect = ["CONNECT {\"verbose\":false,\"headers\":true,\"lang\":\"", Lang, "\"}\r\n"],
            Channel = open([Connect, "SUB a 1\r\n"]),
            {Frame, _} = events([{deliver, [Delivery]}], Channel),
            Line = <<"City: ", Value/binary, "\r\nContent-Type: ", Value/binary, "\r\n\r\nx\r\n">>,
            ?assertNotEqual(nomatch, binary:match(Frame, Line))
        end}
     || {Lang, Value} <- [{"go", Name}, {"python3", Name}, {"java", <<"Z%C3%BCrich">>}]
    ].
