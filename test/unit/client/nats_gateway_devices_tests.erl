%% Requests to devices: the value alone, and in a channel with a fake host.
-module(nats_gateway_devices_tests).

-include("nats_gateway.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(CONNECT, "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n").
-define(INBOX, "SUB _INBOX.x.* 1\r\n").
-define(RULE, <<"dev.*.get -> cmd/${1} -> cmd/${1}/reply">>).
-define(REPLY(Device), {undefined, <<"cmd/", Device, "/reply">>}).

settings(More) ->
    {ok, Settings} = nats_gateway_schema:check(
        nats_gateway_device_config:file_schema(), maps:merge(#{<<"rules">> => [?RULE]}, More)
    ),
    Settings.

%% -------------------------------------------------------------------------------------------
%% The value

pub(Subject, ReplyTo) ->
    #pub{
        subject = Subject,
        topic = nats_gateway_nif:topic(Subject, <<>>),
        reply_to = ReplyTo,
        reply_topic = nats_gateway_nif:topic(ReplyTo, <<>>),
        payload = <<>>
    }.

ask(Subject, ReplyTo, Now, Devices) ->
    Pub = pub(Subject, ReplyTo),
    {request, Pub, Route, []} = nats_gateway_devices:take([Pub], <<>>, Devices),
    case nats_gateway_devices:request(Pub, Route, Now, Devices) of
        {subscribe, Key, Unused, NDevices} ->
            {_, Subscribed} = nats_gateway_devices:subscribed(Key, Now, NDevices),
            {publish, Command, Asked} = nats_gateway_devices:request(Pub, Route, Now, Subscribed),
            {[{subscribe, Key} | [{unsubscribe, Key1} || Key1 <- Unused]], Command, Asked};
        {publish, Command, Asked} ->
            {[], Command, Asked};
        no_responders ->
            no_responders
    end.

%% The subjects that get an answer on this topic.
receivers(Topic, Now, Devices) ->
    {new_key, Inbox} = nats_gateway_subscriptions:add(
        <<"1">>, <<"i.*">>, undefined, {undefined, <<"i/+">>}, nats_gateway_subscriptions:new()
    ),
    Delivery = #delivery{key = {undefined, Topic}, topic = Topic, payload = <<>>},
    {[Delivery | Answers], NDevices} = nats_gateway_devices:answers([Delivery], Now, Inbox, Devices),
    {[Reply || #delivery{key = {undefined, <<"i/+">>}, topic = Reply} <- Answers], NDevices}.

without_rules_there_is_nothing_test() ->
    ?assertEqual(none, nats_gateway_devices:new(settings(#{<<"rules">> => []}))).

answers_are_for_the_oldest_that_waits_test() ->
    D0 = nats_gateway_devices:new(settings(#{})),
    {[{subscribe, ?REPLY("a")}], Command, D1} = ask(<<"dev.a.get">>, <<"i.1">>, 0, D0),
    ?assertMatch(#pub{topic = <<"cmd/a">>, reply_topic = <<"cmd/a/reply">>, reply_to = <<"i.1">>}, Command),
    {[], _, D2} = ask(<<"dev.a.get">>, <<"i.2">>, 1, D1),
    {[{subscribe, ?REPLY("b")}], _, D3} = ask(<<"dev.b.get">>, <<"i.3">>, 2, D2),
    {[<<"i/3">>], D4} = receivers(<<"cmd/b/reply">>, 3, D3),
    {[<<"i/1">>], D5} = receivers(<<"cmd/a/reply">>, 3, D4),
    {[<<"i/2">>], D6} = receivers(<<"cmd/a/reply">>, 3, D5),
    %% Further answers are for the last one, until its time is over.
    {[<<"i/2">>], D7} = receivers(<<"cmd/a/reply">>, 5000, D6),
    {[], _} = receivers(<<"cmd/a/reply">>, 5001, D7),
    {[], _} = receivers(<<"cmd/other/reply">>, 3, D7).

a_request_waits_for_its_time_test() ->
    {_, _, D1} = ask(<<"dev.a.get">>, <<"i.1">>, 0, nats_gateway_devices:new(settings(#{}))),
    {_, _, D2} = ask(<<"dev.a.get">>, <<"i.2">>, 10, D1),
    ?assertMatch({[<<"i/1">>], _}, receivers(<<"cmd/a/reply">>, 4999, D2)),
    ?assertMatch({[<<"i/2">>], _}, receivers(<<"cmd/a/reply">>, 5000, D2)),
    ?assertMatch({[], _}, receivers(<<"cmd/a/reply">>, 5010, D2)).

a_request_that_nobody_got_does_not_wait_test() ->
    {_, _, D1} = ask(<<"dev.a.get">>, <<"i.1">>, 0, nats_gateway_devices:new(settings(#{}))),
    {_, _, D2} = ask(<<"dev.a.get">>, <<"i.2">>, 0, D1),
    D3 = nats_gateway_devices:cancel(<<"i/1">>, nats_gateway_devices:cancel(<<"i/x">>, D2)),
    ?assertMatch({[<<"i/2">>], _}, receivers(<<"cmd/a/reply">>, 1, D3)),
    D4 = nats_gateway_devices:cancel(<<"i/2">>, D2),
    ?assertMatch({[<<"i/1">>], _}, receivers(<<"cmd/a/reply">>, 1, D4)).

as_many_as_the_setting_says_test() ->
    D0 = nats_gateway_devices:new(settings(#{<<"max_requests">> => 2})),
    {_, _, D1} = ask(<<"dev.a.get">>, <<"i.1">>, 0, D0),
    {_, _, D2} = ask(<<"dev.a.get">>, <<"i.2">>, 1, D1),
    ?assertEqual(no_responders, ask(<<"dev.a.get">>, <<"i.3">>, 2, D2)),
    ?assertMatch({[], _, _}, ask(<<"dev.a.get">>, <<"i.3">>, 5000, D2)),
    {[<<"i/1">>], D3} = receivers(<<"cmd/a/reply">>, 3, D2),
    ?assertMatch({[], _, _}, ask(<<"dev.a.get">>, <<"i.3">>, 4, D3)).

%% The one that was asked the longest ago makes room, and it never waits for an answer.
answer_topics_are_as_many_test() ->
    D0 = nats_gateway_devices:new(settings(#{<<"max_requests">> => 2})),
    {_, _, D1} = ask(<<"dev.a.get">>, <<"i.1">>, 0, D0),
    {[_], D2} = receivers(<<"cmd/a/reply">>, 1, D1),
    {_, _, D3} = ask(<<"dev.b.get">>, <<"i.2">>, 1, D2),
    {Calls, _, D4} = ask(<<"dev.c.get">>, <<"i.3">>, 2, D3),
    ?assertEqual([{subscribe, ?REPLY("c")}, {unsubscribe, ?REPLY("a")}], Calls),
    ?assertNot(nats_gateway_devices:is_subscribed(?REPLY("a"), D4)),
    ?assertMatch({[<<"i/2">>], _}, receivers(<<"cmd/b/reply">>, 3, D4)).

%% Those that may get further answers are bounded, too.
further_answers_are_for_the_latest_test() ->
    D0 = nats_gateway_devices:new(settings(#{
        <<"max_requests">> => 1, <<"rules">> => [<<"dev.* -> cmd/${1} -> r/${1}">>]
    })),
    {_, _, D1} = ask(<<"dev.a">>, <<"i.1">>, 0, D0),
    {[<<"i/1">>], D2} = receivers(<<"r/a">>, 0, D1),
    {[<<"i/1">>], D3} = receivers(<<"r/a">>, 0, D2),
    {_, _, D4} = ask(<<"dev.b">>, <<"i.2">>, 1, D3),
    {[<<"i/2">>], D5} = receivers(<<"r/b">>, 1, D4),
    {[], _} = receivers(<<"r/a">>, 1, D5).

an_answer_topic_is_kept_for_the_idle_time_test() ->
    D0 = nats_gateway_devices:new(settings(#{<<"idle_timeout">> => 8000})),
    {subscribe, Key, [], _} = nats_gateway_devices:request(
        pub(<<"dev.a.get">>, <<"i.1">>), #{filter => <<"cmd/a/reply">>}, 0, D0
    ),
    {8000, D1} = nats_gateway_devices:subscribed(Key, 0, D0),
    {none, _} = nats_gateway_devices:subscribed(?REPLY("b"), 0, D1),
    {_, _, D2} = ask(<<"dev.a.get">>, <<"i.1">>, 3000, D1),
    {[], 3000, D3} = nats_gateway_devices:unused(8000, D2),
    {[Key], none, D4} = nats_gateway_devices:unused(11000, D3),
    ?assertNot(nats_gateway_devices:is_subscribed(Key, D4)).

%% Without an idle time it stays as long as answers may come.
no_idle_time_test() ->
    D0 = nats_gateway_devices:new(settings(#{<<"idle_timeout">> => 0})),
    {_, _, D1} = ask(<<"dev.a.get">>, <<"i.1">>, 0, D0),
    {[], 1, D2} = nats_gateway_devices:unused(4999, D1),
    {[?REPLY("a")], none, _} = nats_gateway_devices:unused(5000, D2).

other_settings_test() ->
    None = settings(#{<<"rules">> => []}),
    D0 = nats_gateway_devices:new(settings(#{})),
    ?assertEqual(none, nats_gateway_devices:configure(None, D0)),
    ?assertEqual(D0, nats_gateway_devices:configure(settings(#{}), none)),
    {_, _, D1} = ask(<<"dev.a.get">>, <<"i.1">>, 0, D0),
    %% What was asked before is still answered.
    D2 = nats_gateway_devices:configure(None, D1),
    ?assertMatch({[<<"i/1">>], _}, receivers(<<"cmd/a/reply">>, 1, D2)),
    ?assertMatch({[?REPLY("a")], none, none}, nats_gateway_devices:unused(60000, D2)),
    Pub = pub(<<"dev.a.get">>, <<"i.1">>),
    ?assertMatch({[Pub], []}, nats_gateway_devices:take([Pub], <<>>, D2)).

publishes_before_a_request_are_taken_together_test() ->
    D = nats_gateway_devices:new(settings(#{})),
    Plain = (pub(<<"dev.a.get">>, <<"i.1">>))#pub{reply_to = undefined},
    Service = pub(<<"service">>, <<"i.1">>),
    Device = pub(<<"dev.a.get">>, <<"i.1">>),
    System = pub(<<"$SYS.REQ.USER.INFO">>, <<"i.1">>),
    ?assertEqual(
        {[Plain, Service], [Device, Plain]},
        nats_gateway_devices:take([Plain, Service, Device, Plain], <<>>, D)
    ),
    ?assertMatch({request, Device, _, [Plain]}, nats_gateway_devices:take([Device, Plain], <<>>, D)),
    [
        ?assertEqual({[Plain], [Own]}, nats_gateway_devices:take([Plain, Own], <<>>, D))
     || Own <- [System, Plain#pub{subject = <<"$JS.API.INFO">>}, Plain#pub{subject = <<"$KV.b.k">>}]
    ],
    Others = [Plain#pub{subject = S} || S <- [<<"$SYS.REQ.USER.INFO">>, <<"$JS">>, <<"$KVx">>]],
    ?assertEqual({[Plain | Others], []}, nats_gateway_devices:take([Plain | Others], <<>>, D)),
    ?assertEqual({[Plain], [ping, Device]}, nats_gateway_devices:take([Plain, ping, Device], <<>>, D)).

%% -------------------------------------------------------------------------------------------
%% In a channel

open(Text) -> open(Text, #{}, #{}).

open(Text, OfDevices, More) ->
    _ = calls(),
    Config = maps:merge((nats_gateway_file:defaults())#{devices := settings(OfDevices)}, More),
    {ok, _, _, Channel} =
        nats_gateway_channel:init(nats_gateway_host_fake, nats_gateway_host_fake:client(Config)),
    {_, NChannel} = input(Text, Channel),
    _ = calls(),
    NChannel.

input(Text, Channel) -> input(iolist_to_binary(Text), <<>>, Channel).

%% After a CONNECT the decoder has other options.
input(<<>>, Out, Channel) ->
    {Out, Channel};
input(Bytes, Out, Channel) ->
    {ok, Ops, Rest, _} = nats_gateway_nif:decode(Bytes, nats_gateway_channel:decoder(Channel)),
    case nats_gateway_channel:handle_ops(Ops, Channel) of
        {ok, More, _, NChannel} -> input(Rest, iolist_to_binary([Out, More]), NChannel);
        {stop, Reason, More, _} -> {stop, Reason, iolist_to_binary([Out, More])}
    end.

events(Events, Channel) ->
    {ok, Out, _, NChannel} = nats_gateway_channel:handle_info({fake, events, Events}, Channel),
    {iolist_to_binary(Out), NChannel}.

set(Callback, Answer, Channel) ->
    {ok, [], _, NChannel} = nats_gateway_channel:handle_info({fake, set, Callback, Answer}, Channel),
    NChannel.

calls() ->
    receive
        {host, Call} -> [Call | calls()]
    after 0 -> []
    end.

reply(Device, Payload) ->
    Topic = <<"cmd/", Device/binary, "/reply">>,
    {deliver, [#delivery{key = {undefined, Topic}, topic = Topic, payload = Payload}]}.

the_answer_topic_is_subscribed_before_the_command_test() ->
    C0 = set(subscribe, wait, open(?CONNECT ?INBOX)),
    {<<>>, C1} = input("PUB before 1\r\nb\r\nPUB dev.a.get _INBOX.x.1 1\r\nq\r\nPUB after 1\r\na\r\n", C0),
    Options = #{confirm => true, no_local => false, retained => false},
    ?assertMatch(
        [{publish, [#pub{subject = <<"before">>}], _}, {subscribe, ?REPLY("a"), Options}], calls()
    ),
    {<<>>, C2} = events([{subscribed, ok}], C1),
    ?assertMatch(
        [
            {publish, [#pub{topic = <<"cmd/a">>, reply_topic = <<"cmd/a/reply">>, payload = <<"q">>}], _},
            {publish, [#pub{subject = <<"after">>}], _}
        ],
        calls()
    ),
    {<<"MSG _INBOX.x.1 1 2\r\n21\r\n">>, C3} = events([reply(<<"a">>, <<"21">>)], C2),
    %% The next one has the subscription already, which is none of the client's own.
    {<<>>, C4} = input("PUB dev.a.get _INBOX.x.2 0\r\n\r\n", C3),
    ?assertMatch([{publish, [#pub{topic = <<"cmd/a">>}], _}], calls()),
    {<<"MSG _INBOX.x.2 1 2\r\n22\r\n">>, C5} = events([reply(<<"a">>, <<"22">>)], C4),
    ?assertMatch([#{sid := <<"1">>}], nats_gateway_channel:subscriptions(C5)),
    ?assertEqual(#{subscriptions => 1}, maps:with([subscriptions], nats_gateway_channel:stats(C5))).

%% With rules for devices and a key/value store, each gets what is its own.
requests_to_the_store_between_requests_to_devices_test() ->
    C = open(?CONNECT ?INBOX, #{}, #{kv => #{<<"b">> => <<"b/">>}}),
    {<<>>, _} = input(
        [
            "PUB a 0\r\n\r\nPUB $KV.b.k _INBOX.x.1 1\r\nv\r\nPUB b 0\r\n\r\n",
            "PUB $JS.API.INFO _INBOX.x.2 0\r\n\r\nPUB dev.a.get _INBOX.x.3 0\r\n\r\nPUB $KV.b.k 1\r\nw\r\n"
        ],
        C
    ),
    ?assertMatch(
        [
            {publish, [#pub{subject = <<"a">>}], _},
            {ask_store, <<"$KV.b.k">>, _},
            {publish, [#pub{subject = <<"b">>}], _},
            {ask_store, <<"$JS.API.INFO">>, _},
            {subscribe, ?REPLY("a"), _},
            {publish, [#pub{topic = <<"cmd/a">>}], _},
            {ask_store, <<"$KV.b.k">>, _}
        ],
        calls()
    ).

a_refused_answer_topic_denies_the_request_test_() ->
    Denied = <<"-ERR 'Permissions Violation for Publish to \"dev.a.get\"'\r\n">>,
    Request = "PUB dev.a.get _INBOX.x.1 0\r\n\r\n",
    [
        fun() ->
            {Denied, _} = input(Request, set(subscribe, denied, open(?CONNECT ?INBOX))),
            ?assertMatch([{subscribe, _, _}], calls())
        end,
        fun() ->
            {<<>>, C} = input([Request, "PING\r\n"], set(subscribe, wait, open(?CONNECT ?INBOX))),
            {Out, NC} = events([{subscribed, too_many_tokens}], C),
            ?assertEqual(<<Denied/binary, "PONG\r\n">>, Out),
            ?assertMatch([{subscribe, _, _}, barrier], calls()),
            %% Nothing is left of it.
            {<<>>, _} = input(Request, NC),
            ?assertMatch([{subscribe, _, _}], calls())
        end,
        ?_assertEqual(
            {stop, permission_denied, Denied},
            input(Request, set(subscribe, {stop, permission_denied}, open(?CONNECT ?INBOX)))
        ),
        ?_assertEqual(
            {stop, upstream_lost, <<>>},
            input(Request, set(subscribe, {stop, upstream_lost}, open(?CONNECT ?INBOX)))
        )
    ].

nobody_on_the_command_topic_is_no_responders_test_() ->
    Request = "PUB dev.a.get _INBOX.x.1 0\r\n\r\n",
    NoResponders = <<"HMSG _INBOX.x.1 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n">>,
    Next = fun(C) ->
        %% The next answer is for the next request.
        Up = set(publish, {ok, []}, C),
        {<<>>, Asked} = input("PUB dev.a.get _INBOX.x.2 0\r\n\r\n", Up),
        ?assertMatch({<<"MSG _INBOX.x.2 1 1\r\ny\r\n">>, _}, events([reply(<<"a">>, <<"y">>)], Asked))
    end,
    [
        fun() ->
            {NoResponders, C} = input(Request, set(publish, {ok, [{1, no_responders}]}, open(?CONNECT ?INBOX))),
            Next(C)
        end,
        fun() ->
            {<<>>, C0} = input(Request, open(?CONNECT ?INBOX)),
            {NoResponders, C1} = events(
                [{publish_rejected, <<"dev.a.get">>, <<"_INBOX.x.1">>, no_responders}], C0
            ),
            Next(C1)
        end,
        fun() ->
            Verbose = "CONNECT {\"verbose\":true,\"headers\":true,\"no_responders\":true}\r\n" ?INBOX,
            {<<>>, C0} = input(Request, set(publish, wait, open(Verbose))),
            {Out, C1} = events([{published, [{1, no_responders}]}], C0),
            ?assertEqual(<<"+OK\r\n", NoResponders/binary>>, Out),
            {<<"+OK\r\n">>, C2} = input("PUB dev.a.get _INBOX.x.2 0\r\n\r\n", set(publish, {ok, []}, C1)),
            {<<"MSG _INBOX.x.2 1 1\r\ny\r\n">>, _} = events([reply(<<"a">>, <<"y">>)], C2)
        end,
        fun() ->
            {<<>>, C0} = input(Request, open(?CONNECT ?INBOX)),
            {<<"-ERR 'Permissions Violation for Publish to \"dev.a.get\"'\r\n">>, C1} = events(
                [{publish_rejected, <<"dev.a.get">>, <<"_INBOX.x.1">>, denied}], C0
            ),
            Next(C1)
        end
    ].

one_request_too_many_has_no_responders_test() ->
    C0 = open(?CONNECT ?INBOX, #{<<"max_requests">> => 1}, #{}),
    {<<>>, C1} = input("PUB dev.a.get _INBOX.x.1 0\r\n\r\n", C0),
    _ = calls(),
    {<<"HMSG _INBOX.x.2 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n">>, _} = input("PUB dev.a.get _INBOX.x.2 0\r\n\r\n", C1),
    ?assertEqual([], calls()).

what_is_no_request_goes_to_its_own_topic_test() ->
    {<<>>, C} = input("PUB dev.a.get 0\r\n\r\nPUB dev.a.put _INBOX.x.1 0\r\n\r\n", open(?CONNECT ?INBOX)),
    ?assertMatch(
        [{publish, [#pub{topic = <<"dev/a/get">>}, #pub{topic = <<"dev/a/put">>, reply_topic = <<"_INBOX/x/1">>}], _}],
        calls()
    ),
    %% Nobody can be subscribed to this reply subject, and a reply to one of these names is forbidden.
    {<<>>, _} = input("PUB dev.a.get a..b 0\r\n\r\n", C),
    ?assertMatch([{publish, [#pub{topic = <<"cmd/a">>}], _}], calls()),
    {<<"-ERR 'Permissions Violation for Publish with Reply of \"$JS.ACK.x\"'\r\n">>, _} =
        input("PUB dev.a.get $JS.ACK.x 0\r\n\r\n", C),
    ?assertEqual([], calls()).

%% The client's own subscription to the answer topic and that for devices are one at the host.
own_subscription_to_the_answer_topic_test() ->
    C0 = open(?CONNECT ?INBOX "SUB cmd.a.reply 2\r\n"),
    {<<>>, C1} = input("PUB dev.a.get _INBOX.x.1 0\r\n\r\n", C0),
    ?assertMatch([{publish, _, _}], calls()),
    {Both, C2} = events([reply(<<"a">>, <<"y">>)], C1),
    ?assertEqual(<<"MSG cmd.a.reply 2 1\r\ny\r\nMSG _INBOX.x.1 1 1\r\ny\r\n">>, Both),
    %% UNSUB leaves the one for devices.
    {<<>>, C3} = input("UNSUB 2\r\nPUB dev.a.get _INBOX.x.2 0\r\n\r\n", C2),
    ?assertMatch([{publish, _, _}], [Call || Call <- calls(), Call =/= barrier]),
    {<<"MSG _INBOX.x.2 1 1\r\ny\r\n">>, C4} = events([reply(<<"a">>, <<"y">>)], C3),
    {<<>>, C5} = input("SUB cmd.a.reply 3\r\n", C4),
    ?assertMatch([{subscribe, ?REPLY("a"), #{sid := <<"3">>}}], [Call || Call <- calls(), Call =/= barrier]),
    {<<"MSG cmd.a.reply 3 1\r\nz\r\nMSG _INBOX.x.2 1 1\r\nz\r\n">>, _} = events([reply(<<"a">>, <<"z">>)], C5).

an_unused_answer_topic_is_unsubscribed_test() ->
    C0 = open(?CONNECT ?INBOX "SUB cmd.b.reply 2\r\n", #{<<"timeout">> => 1, <<"idle_timeout">> => 0}, #{}),
    {<<>>, C1} = input("PUB dev.a.get _INBOX.x.1 0\r\n\r\nPUB dev.b.get _INBOX.x.2 0\r\n\r\n", C0),
    receive
        unused_devices -> ok
    end,
    _ = calls(),
    timer:sleep(2),
    {ok, [], _, C2} = nats_gateway_channel:handle_timeout(devices, C1),
    ?assertEqual([{unsubscribe, ?REPLY("a")}], calls()),
    %% The client's own is still there, and the next request subscribes again.
    {<<"MSG cmd.b.reply 2 1\r\nz\r\n">>, C3} = events([reply(<<"b">>, <<"z">>)], C2),
    {<<>>, C4} = input("PUB dev.a.get _INBOX.x.3 0\r\n\r\n", C3),
    ?assertMatch([{subscribe, ?REPLY("a"), _}, {publish, _, _}], calls()),
    %% Somebody else has ended it.
    {<<>>, C5} = events([{removed, ?REPLY("a")}], C4),
    {<<>>, _} = input("PUB dev.a.get _INBOX.x.4 0\r\n\r\n", C5),
    ?assertMatch([{subscribe, ?REPLY("a"), _}, {publish, _, _}], calls()).

after_another_login_nothing_is_left_test() ->
    {<<>>, C0} = input("PUB dev.a.get _INBOX.x.1 0\r\n\r\n", open(?CONNECT ?INBOX)),
    {<<>>, C1} = input("CONNECT {\"verbose\":false,\"user\":\"other\"}\r\n", C0),
    _ = calls(),
    {<<>>, C2} = events([reply(<<"a">>, <<"late">>)], C1),
    {<<>>, _} = input("PUB dev.a.get _INBOX.x.2 0\r\n\r\n", C2),
    ?assertMatch([{subscribe, ?REPLY("a"), _}, {publish, _, _}], calls()).

rules_may_come_and_go_test() ->
    C0 = open(?CONNECT ?INBOX, #{<<"rules">> => []}, #{}),
    Request = "PUB dev.a.get _INBOX.x.1 0\r\n\r\n",
    {<<>>, C1} = input(Request, C0),
    ?assertMatch([{publish, [#pub{topic = <<"dev/a/get">>}], _}], calls()),
    With = (nats_gateway_file:defaults())#{devices := settings(#{})},
    {ok, [], _, C2} = nats_gateway_channel:configure(With, C1),
    {<<>>, C3} = input(Request, C2),
    ?assertMatch([{subscribe, _, _}, {publish, [#pub{topic = <<"cmd/a">>}], _}], calls()),
    {ok, [], _, C4} = nats_gateway_channel:configure(nats_gateway_file:defaults(), C3),
    {<<"MSG _INBOX.x.1 1 1\r\ny\r\n">>, C5} = events([reply(<<"a">>, <<"y">>)], C4),
    {<<>>, _} = input(Request, C5),
    ?assertMatch([{publish, [#pub{topic = <<"dev/a/get">>}], _}], calls()).
