%% A client of MQTT 5 against a scripted broker, byte for byte. Nothing here is NATS.
-module(nats_gateway_mqtt_client_tests).

-include("nats_gateway_mqtt.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_scripted_broker, [listen/0, packet/1]).

-define(CLIENT, nats_gateway_mqtt_client).
-define(WAIT, 5000).

%% -------------------------------------------------------------------------------------------
%% Login

login_test() ->
    {Client, Broker, Connect} = start(#{}),
    ?assertEqual(<<16#10, 15, 0, 4, "MQTT", 5, 2, 0, 60, 0, 0, 2, "id">>, Connect),
    ok = gen_tcp:send(Broker, <<16#20, 11, 0, 0, 8, 33, 0, 20, 39, 0, 0, 1, 0>>),
    {[{connected, Properties}], _} = events(1, Client),
    ?assertEqual(#{receive_maximum => 20, maximum_packet_size => 256}, Properties).

refused_test() ->
    {Client, Broker, _} = start(#{}),
    ok = gen_tcp:send(Broker, <<16#20, 8, 0, 16#87, 5, 31, 0, 2, "no">>),
    {Events, Closed} = events(1, Client),
    ?assertEqual([{refused, 16#87, #{reason_string => <<"no">>}}], Events),
    ?assertEqual({error, closed}, gen_tcp:recv(Broker, 0, ?WAIT)),
    ?assertEqual(ok, ?CLIENT:stop(Closed)).

no_login_test_() ->
    [
        ?_test(begin
            {Client, Broker, _} = start(#{timeout => 100}),
            case Answer of
                nothing -> ok;
                close -> ok = gen_tcp:close(Broker);
                _ -> ok = gen_tcp:send(Broker, Answer)
            end,
            ?assertMatch({[{closed, Ending, none}], _}, events(1, Client))
        end)
     || {Answer, Ending} <- [
            {nothing, no_answer},
            {close, closed},
            {<<16#D0, 0>>, {fault, protocol_error}},
            %% a broker of MQTT 3.1.1
            {<<16#20, 2, 0, 1>>, {fault, old_version}},
            %% the beginning of a packet
            {<<"HTTP/1.1 400 Bad Request\r\n\r\n">>, no_answer}
        ]
    ].

%% -------------------------------------------------------------------------------------------
%% Sending

%% Identifiers are given when a packet is sent, and come back as tags.
answers_test() ->
    {Client, Broker} = connected(<<>>),
    Sent = ?CLIENT:send(
        [
            {publish(<<"a">>, 0), none},
            {publish(<<"b">>, 1), first},
            {subscribe(<<"c">>), second},
            {#unsubscribe{filters = [<<"d">>]}, third}
        ],
        Client
    ),
    <<16#30, _, 0, 1, "a", 0>> = packet(Broker),
    <<16#32, _, 0, 1, "b", 1:16, 0>> = packet(Broker),
    <<16#82, _, 2:16, 0, 0, 1, "c", 0>> = packet(Broker),
    <<16#A2, _, 3:16, 0, 0, 1, "d">> = packet(Broker),
    ok = gen_tcp:send(Broker, [
        <<16#90, 4, 2:16, 0, 16#87>>,
        <<16#40, 3, 1:16, 16#10>>,
        <<16#B0, 4, 3:16, 0, 0>>,
        %% to a packet that is not known
        <<16#40, 2, 9:16>>
    ]),
    {Events, Answered} = events(3, Sent),
    ?assertEqual([{answer, second, 16#87}, {answer, first, 16#10}, {answer, third, 0}], Events),
    over(Answered, Broker).

%% A broker without TCP_NODELAY keeps a small packet back until the one before it is acknowledged. When both
%% sides send in turn, the kernel delays that by 40 ms.
small_packets_are_acknowledged_soon_test() ->
    {Client, Broker} = connected(<<>>),
    ok = inet:setopts(Broker, [{nodelay, false}]),
    InTurn = lists:foldl(
        fun(_, Acc) ->
            Sent = ?CLIENT:send([{publish(<<"a">>, 0), none}], Acc),
            <<16#30, _/binary>> = packet(Broker),
            ok = gen_tcp:send(Broker, <<16#30, 4, 0, 1, "a", 0>>),
            {[#publish{}], NAcc} = events(1, Sent),
            NAcc
        end,
        Client,
        lists:seq(1, 30)
    ),
    {Times, Done} = lists:mapfoldl(
        fun(_, Acc) ->
            Sent = ?CLIENT:send([{publish(<<"a">>, 0), none}], Acc),
            <<16#30, _/binary>> = packet(Broker),
            Began = erlang:monotonic_time(millisecond),
            ok = gen_tcp:send(Broker, <<16#30, 4, 0, 1, "b", 0>>),
            ok = gen_tcp:send(Broker, <<16#30, 4, 0, 1, "c", 0>>),
            {[#publish{topic = <<"b">>}, #publish{topic = <<"c">>}], NAcc} = events(2, Sent),
            {erlang:monotonic_time(millisecond) - Began, NAcc}
        end,
        InTurn,
        lists:seq(1, 5)
    ),
    %% Another process may have the processor for a moment, but not each time.
    ?assert(lists:min(Times) < 20, Times),
    over(Done, Broker).

%% All or nothing.
what_the_codec_refuses_test() ->
    {Client, Broker} = connected(<<>>),
    Items = [{publish(<<"a">>, 0), none}, {publish(<<"+">>, 0), none}],
    ?assertError(badarg, ?CLIENT:send(Items, Client)),
    over(Client, Broker).

%% What waits behind the Receive Maximum keeps its order, and so does what comes after it.
receive_maximum_test() ->
    {Client, Broker} = connected(<<33, 1:16>>),
    Sent = ?CLIENT:send(
        [
            {publish(<<"a">>, 1), a},
            {publish(<<"b">>, 0), none},
            {publish(<<"c">>, 1), c},
            {publish(<<"d">>, 0), none}
        ],
        Client
    ),
    {wait, Waiting} = ?CLIENT:ready(?CLIENT:send([{subscribe(<<"e">>), e}], Sent)),
    <<16#32, _, 0, 1, "a", 1:16, 0>> = packet(Broker),
    <<16#30, _, 0, 1, "b", 0>> = packet(Broker),
    ?assertEqual({error, timeout}, gen_tcp:recv(Broker, 0, 50)),
    ok = gen_tcp:send(Broker, <<16#40, 2, 1:16>>),
    {[{answer, a, 0}, ready], Answered} = events(2, Waiting),
    <<16#32, _, 0, 1, "c", 2:16, 0>> = packet(Broker),
    <<16#30, _, 0, 1, "d", 0>> = packet(Broker),
    <<16#82, _, 3:16, 0, 0, 1, "e", 0>> = packet(Broker),
    ok = gen_tcp:send(Broker, <<16#40, 2, 2:16, 16#90, 4, 3:16, 0, 0>>),
    {[{answer, c, 0}, {answer, e, 0}], Done} = events(2, Answered),
    ?assertEqual(ok, ?CLIENT:ready(Done)),
    over(Done, Broker).

%% What is queued could not be taken back.
refused_behind_the_receive_maximum_test() ->
    {Client, Broker} = connected(<<33, 1:16>>),
    Full = ?CLIENT:send([{publish(<<"a">>, 1), a}, {publish(<<"b">>, 1), b}], Client),
    ?assertError(badarg, ?CLIENT:send([{publish(<<"#">>, 0), none}], Full)),
    <<16#32, _, 0, 1, "a", 1:16, 0>> = packet(Broker),
    ok = gen_tcp:send(Broker, <<16#40, 2, 1:16>>),
    {[{answer, a, 0}], Answered} = events(1, Full),
    <<16#32, _, 0, 1, "b", 2:16, 0>> = packet(Broker),
    over(Answered, Broker).

%% -------------------------------------------------------------------------------------------
%% Messages

acknowledged_test() ->
    {Client, Broker} = connected(<<>>),
    ok = gen_tcp:send(Broker, [
        <<16#30, 5, 0, 1, "t", 0, "1">>,
        <<16#32, 7, 0, 1, "t", 0, 7, 0, "2">>,
        %% what can't be read
        <<16#32, 7, 0, 1, 255, 0, 8, 0, "3">>,
        <<16#30, 5, 0, 1, 255, 0, "4">>
    ]),
    {Events, NClient} = events(2, Client),
    ?assertEqual(
        [
            #publish{topic = <<"t">>, payload = <<"1">>},
            #publish{topic = <<"t">>, payload = <<"2">>, qos = 1, packet_id = 7}
        ],
        Events
    ),
    ?assertEqual([<<16#40, 2, 7:16>>, <<16#40, 2, 8:16>>], [packet(Broker) || _ <- [1, 2]]),
    over(NClient, Broker).

fragments_test() ->
    {Client, Broker} = connected(<<>>),
    Self = self(),
    spawn_link(fun() ->
        [
            begin
                ok = gen_tcp:send(Broker, <<Byte>>),
                timer:sleep(1)
            end
         || <<Byte>> <= <<16#30, 5, 0, 1, "t", 0, "1", 16#30, 5, 0, 1, "t", 0, "2">>
        ],
        Self ! sent
    end),
    {Events, NClient} = events(2, Client),
    ?assertEqual([<<"1">>, <<"2">>], [Payload || #publish{payload = Payload} <- Events]),
    receive
        sent -> ok
    after ?WAIT -> error(not_sent)
    end,
    over(NClient, Broker).

%% A message that is larger than allowed is not the end.
too_large_test() ->
    {Started, Broker, _} = start(#{max_received => 100}),
    ok = gen_tcp:send(Broker, [
        <<16#20, 3, 0, 0, 0, 16#32, 16#80, 1, 0, 1, "t", 7:16, 0, 0:(8 * 122)>>,
        <<16#30, 5, 0, 1, "t", 0, "1">>
    ]),
    {Events, Client} = events(3, Started),
    ?assertMatch([{connected, _}, {too_large, <<"t">>, 131, 100}, #publish{payload = <<"1">>}], Events),
    ?assertEqual(<<16#40, 2, 7:16>>, packet(Broker)),
    over(Client, Broker).

%% -------------------------------------------------------------------------------------------
%% Barrier

barrier_test() ->
    {Client, Broker} = connected(<<>>),
    {ok, Idle} = ?CLIENT:barrier(own, Client),
    Sent = ?CLIENT:send([{subscribe(<<"a">>), a}], Idle),
    {wait, Waiting} = ?CLIENT:barrier(own, Sent),
    <<16#82, _, 1:16, _/binary>> = packet(Broker),
    <<16#C0, 0>> = packet(Broker),
    %% the answers that are missing are waited for as well
    ok = gen_tcp:send(Broker, <<16#D0, 0>>),
    {[], Ponged} = taken(Waiting),
    ok = gen_tcp:send(Broker, <<16#30, 5, 0, 1, "a", 0, "1", 16#90, 4, 1:16, 0, 0>>),
    {[#publish{}, {answer, a, 0}, barrier], Done} = events(3, Ponged),
    {ok, _} = ?CLIENT:barrier(own, Done),
    over(Done, Broker).

a_barrier_for_all_asks_the_broker_test() ->
    {Client, Broker} = connected(<<>>),
    {wait, Waiting} = ?CLIENT:barrier(all, Client),
    <<16#C0, 0>> = packet(Broker),
    ok = gen_tcp:send(Broker, <<16#D0, 0>>),
    {[barrier], Done} = events(1, Waiting),
    over(Done, Broker).

%% Behind the Receive Maximum a PINGREQ would overtake what waits.
barrier_behind_the_receive_maximum_test() ->
    {Client, Broker} = connected(<<33, 1:16>>),
    Sent = ?CLIENT:send([{publish(<<"a">>, 1), a}, {publish(<<"b">>, 1), b}], Client),
    {wait, Waiting} = ?CLIENT:barrier(own, Sent),
    <<16#32, _, 0, 1, "a", 1:16, 0>> = packet(Broker),
    ?assertEqual({error, timeout}, gen_tcp:recv(Broker, 0, 50)),
    ok = gen_tcp:send(Broker, <<16#40, 2, 1:16>>),
    {[{answer, a, 0}], Answered} = events(1, Waiting),
    <<16#32, _, 0, 1, "b", 2:16, 0>> = packet(Broker),
    <<16#C0, 0>> = packet(Broker),
    ok = gen_tcp:send(Broker, <<16#40, 2, 2:16, 16#D0, 0>>),
    {[{answer, b, 0}, barrier], Done} = events(2, Answered),
    over(Done, Broker).

%% With QoS 2 the answer is complete with the PUBCOMP. Until then the message counts for the Receive
%% Maximum, and no PINGREQ overtakes the PUBREL.
exactly_once_test() ->
    {Client, Broker} = connected(<<33, 1:16>>),
    Sent = ?CLIENT:send([{publish(<<"a">>, 2), a}, {publish(<<"b">>, 2), b}], Client),
    {wait, Waiting} = ?CLIENT:barrier(own, Sent),
    <<16#34, _, 0, 1, "a", 1:16, 0>> = packet(Broker),
    ?assertEqual({error, timeout}, gen_tcp:recv(Broker, 0, 50)),
    ok = gen_tcp:send(Broker, <<16#50, 3, 1:16, 16#10>>),
    {[], Received} = taken(Waiting),
    <<16#62, 2, 1:16>> = packet(Broker),
    ?assertEqual({error, timeout}, gen_tcp:recv(Broker, 0, 50)),
    ok = gen_tcp:send(Broker, <<16#70, 2, 1:16>>),
    %% the reason of the PUBREC
    {[{answer, a, 16#10}], Completed} = events(1, Received),
    <<16#34, _, 0, 1, "b", 2:16, 0>> = packet(Broker),
    ?assertEqual({error, timeout}, gen_tcp:recv(Broker, 0, 50)),
    %% A refusal ends it.
    ok = gen_tcp:send(Broker, <<16#50, 3, 2:16, 16#87>>),
    {[{answer, b, 16#87}], Refused} = events(1, Completed),
    <<16#C0, 0>> = packet(Broker),
    ok = gen_tcp:send(Broker, <<16#D0, 0>>),
    {[barrier], Done} = events(1, Refused),
    over(Done, Broker).

%% Many at once, answered in any order and in one segment.
exactly_once_many_test() ->
    {Client, Broker} = connected(<<>>),
    Numbers = lists:seq(1, 100),
    Sent = ?CLIENT:send([{publish(<<"a">>, 2), N} || N <- Numbers], Client),
    [<<16#34, _, 0, 1, "a", N:16, 0>> = packet(Broker) || N <- Numbers],
    ok = gen_tcp:send(Broker, [<<16#50, 2, N:16>> || N <- lists:reverse(Numbers)]),
    {[], Received} = taken(Sent),
    [<<16#62, 2, N:16>> = packet(Broker) || N <- lists:reverse(Numbers)],
    ok = gen_tcp:send(Broker, [<<16#70, 2, N:16>> || N <- Numbers]),
    {Events, Done} = events(100, Received),
    ?assertEqual([{answer, N, 0} || N <- Numbers], Events),
    over(Done, Broker).

%% Answers that do not belong to the QoS of the message, or come out of turn.
exchange_faults_test_() ->
    [
        ?_test(begin
            {Client, Broker} = connected(<<>>),
            Sent = ?CLIENT:send([{publish(<<"a">>, QoS), a}], Client),
            _ = packet(Broker),
            ok = gen_tcp:send(Broker, Answers),
            {Events, _} = taken(Sent),
            ?assertEqual({closed, {fault, protocol_error}, none}, lists:last(Events))
        end)
     || {QoS, Answers} <- [
            {2, <<16#40, 2, 1:16>>},
            {2, <<16#40, 2, 1:16, 16#D0, 0>>},
            {2, <<16#70, 2, 1:16>>},
            {2, <<16#50, 2, 1:16, 16#70, 2, 1:16, 16#70, 2, 1:16>>},
            {1, <<16#50, 2, 1:16>>},
            {1, <<16#70, 2, 1:16, 16#D0, 0>>}
        ]
    ].

%% Such a broker is asked a second time.
barrier_of_a_broker_whose_answers_overtake_test() ->
    {Client, Broker} = connected(<<>>),
    Paced = ?CLIENT:subscribed(<<"a">>, ?CLIENT:pace_echoes(Client)),
    Sent = ?CLIENT:send([{publish(<<"a">>, 0), none}], Paced),
    {wait, Waiting} = ?CLIENT:barrier(own, Sent),
    <<16#30, _, 0, 1, "a", 0>> = packet(Broker),
    <<16#C0, 0>> = packet(Broker),
    ok = gen_tcp:send(Broker, <<16#D0, 0>>),
    {[], Ponged} = taken(Waiting),
    <<16#C0, 0>> = packet(Broker),
    ok = gen_tcp:send(Broker, <<16#30, 5, 0, 1, "a", 0, "1", 16#D0, 0>>),
    {[#publish{}, barrier], Done} = events(2, Ponged),
    over(Done, Broker).

%% -------------------------------------------------------------------------------------------
%% Every packet to the caller

handed_over_test() ->
    {Client, Broker} = connected(<<>>),
    Subscribe = (subscribe(<<"a">>))#subscribe{packet_id = 1},
    Handed = ?CLIENT:hand_over([Subscribe, pingreq], Client),
    <<16#82, _, 1:16, _/binary>> = packet(Broker),
    <<16#C0, 0>> = packet(Broker),
    ok = gen_tcp:send(Broker, <<16#D0, 0, 16#30, 4, 0, 1, "a", 0, 16#90, 4, 1:16, 0, 0>>),
    {Events, Given} = events(3, Handed),
    ?assertEqual(
        [
            {packet, pingresp},
            {packet, #publish{topic = <<"a">>}},
            {packet, #suback{packet_id = 1, reasons = [0]}}
        ],
        Events
    ),
    Taken = ?CLIENT:send([{subscribe(<<"b">>), b}], ?CLIENT:take_over(2, Given)),
    <<16#82, _, 2:16, _/binary>> = packet(Broker),
    %% the PINGRESP that has come does not count for this one
    {wait, Waiting} = ?CLIENT:barrier(own, Taken),
    ok = gen_tcp:send(Broker, <<16#90, 4, 2:16, 0, 0>>),
    {[{answer, b, 0}], Answered} = events(1, Waiting),
    <<16#C0, 0>> = packet(Broker),
    ok = gen_tcp:send(Broker, <<16#D0, 0>>),
    {[barrier], Done} = events(1, Answered),
    over(Done, Broker).

%% A PINGRESP that comes after the caller has given up is that of its own PINGREQ.
taken_over_too_soon_test() ->
    {Client, Broker} = connected(<<>>),
    Taken = ?CLIENT:take_over(1, ?CLIENT:hand_over([pingreq], Client)),
    <<16#C0, 0>> = packet(Broker),
    {wait, Waiting} = ?CLIENT:barrier(all, Taken),
    <<16#C0, 0>> = packet(Broker),
    ok = gen_tcp:send(Broker, <<16#D0, 0>>),
    {[], Late} = taken(Waiting),
    ok = gen_tcp:send(Broker, <<16#D0, 0>>),
    {[barrier], Done} = events(1, Late),
    over(Done, Broker).

%% -------------------------------------------------------------------------------------------
%% The end

disconnected_test_() ->
    [
        ?_test(begin
            {Client, Broker} = connected(<<>>),
            Sent = ?CLIENT:send([{publish(Topic, 0), none} || Topic <- Topics], Client),
            ok = gen_tcp:send(Broker, <<16#E0, 1, Reason>>),
            {Events, Closed} = events(1, Sent),
            ?assertEqual([{closed, {disconnect, Reason, #{}}, Blame}], Events),
            closed_for_good(Closed)
        end)
     || {Topics, Reason, Blame} <- [
            {[], 16#8E, none},
            {[<<"a">>], 16#8E, none},
            {[], 16#82, none},
            {[<<"a">>], 16#82, {blamed, {nats_gateway_hangups:packet(publish, <<"a">>), <<"a">>}}},
            {[<<"a">>, <<"b">>], 16#82, {blamed, unknown}}
        ]
    ].

closed_test() ->
    {Client, Broker} = connected(<<>>),
    Sent = ?CLIENT:send([{subscribe(<<"a">>), a}], Client),
    <<16#82, _/binary>> = packet(Broker),
    ok = gen_tcp:close(Broker),
    Suspect = {nats_gateway_hangups:packet(subscribe, <<"a">>), <<"a">>},
    {[{closed, closed, {closed, Suspect}}], Closed} = events(1, Sent),
    closed_for_good(Closed).

%% What came before a barrier was borne.
nobody_is_blamed_after_a_barrier_test() ->
    {Client, Broker} = connected(<<>>),
    {wait, Waiting} = ?CLIENT:barrier(own, ?CLIENT:send([{publish(<<"a">>, 0), none}], Client)),
    ok = gen_tcp:send(Broker, <<16#D0, 0>>),
    {[barrier], Done} = events(1, Waiting),
    ok = gen_tcp:close(Broker),
    {[{closed, closed, none}], _} = events(1, Done).

%% Each topic that is new has a PINGREQ behind it.
watched_test() ->
    {Started, Broker, _} = start(#{watched => true}),
    ok = gen_tcp:send(Broker, <<16#20, 3, 0, 0, 0>>),
    {[{connected, _}], Client} = events(1, Started),
    Sent = ?CLIENT:send([{publish(Topic, 0), none} || Topic <- [<<"a">>, <<"b">>]], Client),
    [<<16#30, _/binary>>, <<16#C0, 0>>, <<16#30, _/binary>>, <<16#C0, 0>>] =
        [packet(Broker) || _ <- [1, 2, 3, 4]],
    ok = gen_tcp:send(Broker, <<16#D0, 0>>),
    {[], Answered} = taken(Sent),
    Again = ?CLIENT:send([{publish(<<"a">>, 0), none}], Answered),
    <<16#30, _, 0, 1, "a", 0>> = packet(Broker),
    ok = gen_tcp:close(Broker),
    Suspect = {nats_gateway_hangups:packet(publish, <<"b">>), <<"b">>},
    ?assertMatch({[{closed, closed, {closed_again, Suspect}}], _}, events(1, Again)).

%% The broker is told what is wrong with it.
protocol_errors_test_() ->
    [
        ?_test(begin
            {Client, Broker} = connected(<<>>),
            ok = gen_tcp:send(Broker, Bytes),
            ?assertMatch({[{closed, {fault, Fault}, none}], _}, events(1, Client)),
            ?assertEqual(<<16#E0, 1, Reason>>, packet(Broker)),
            ?assertEqual({error, closed}, gen_tcp:recv(Broker, 0, ?WAIT))
        end)
     || {Bytes, Fault, Reason} <- [
            {<<16#30, 0>>, malformed_packet, 16#81},
            {<<16#40, 16#FF, 16#FF, 16#FF, 16#7F>>, packet_too_large, 16#95},
            {<<16#20, 3, 0, 0, 0>>, protocol_error, 16#82},
            %% PUBREC and PUBCOMP of messages that were not sent
            {<<16#50, 2, 0, 1>>, protocol_error, 16#82},
            {<<16#70, 2, 0, 1>>, protocol_error, 16#82},
            %% QoS 2
            {<<16#34, 6, 0, 1, "t", 0, 1, 0>>, protocol_error, 16#82}
        ]
    ].

%% What the broker has said before is heard, although a send finds the end first.
heard_before_a_send_fails_test() ->
    {Client, Broker} = connected(<<>>),
    ok = gen_tcp:send(Broker, <<16#30, 5, 0, 1, "a", 0, "1">>),
    ok = inet:setopts(Broker, [{linger, {true, 0}}]),
    timer:sleep(50),
    ok = gen_tcp:close(Broker),
    timer:sleep(50),
    Once = ?CLIENT:send([{publish(<<"b">>, 0), none}], Client),
    Twice = ?CLIENT:send([{publish(<<"b">>, 0), none}], Once),
    {[#publish{payload = <<"1">>}, {closed, closed, _}], Closed} = events(2, Twice),
    closed_for_good(Closed).

%% Something is said and heard within every keepalive interval.
keepalive_test_() ->
    {timeout, 10, fun() ->
        {Client, Broker} = connected(<<19, 1:16>>),
        Answering = spawn_link(fun() ->
            [
                begin
                    <<16#C0, 0>> = packet(Broker),
                    ok = gen_tcp:send(Broker, <<16#D0, 0>>)
                end
             || _ <- [1, 2]
            ],
            %% now it is silent
            Since = erlang:monotonic_time(millisecond),
            receive
                {since_when, From} -> From ! {since, Since}
            end
        end),
        {[{closed, silent, none}], _} = events(1, Client),
        Now = erlang:monotonic_time(millisecond),
        Answering ! {since_when, self()},
        receive
            {since, Since} ->
                ?assert(Now - Since >= 500),
                ?assert(Now - Since < 1700)
        after ?WAIT -> error(not_silent)
        end
    end}.

%% Nobody waits for a broker that does not read.
stuck_test() ->
    {Client, Broker} = connected(<<>>),
    Payload = binary:copy(<<"x">>, 16777216),
    Large = (publish(<<"a">>, 0))#publish{payload = Payload},
    {Microseconds, Sent} = timer:tc(fun() -> ?CLIENT:send([{Large, none}], Client) end),
    ?assert(Microseconds < 1000000),
    {wait, Waiting} = ?CLIENT:ready(Sent),
    spawn_link(fun() -> read_all(Broker) end),
    {[ready], Ready} = events(1, Waiting),
    ?assertEqual(ok, ?CLIENT:ready(Ready)),
    ?assertEqual(ok, ?CLIENT:stop(Ready)).

read_all(Broker) ->
    case gen_tcp:recv(Broker, 0, ?WAIT) of
        {ok, _} -> read_all(Broker);
        {error, _} -> ok
    end.

foreign_messages_test() ->
    {Client, Broker} = connected(<<>>),
    [
        ?assertEqual(ignore, ?CLIENT:handle_info(Message, Client))
     || Message <- [
            hello,
            {tcp, Broker, <<"x">>},
            {tcp_closed, Broker},
            {?CLIENT, make_ref(), timeout},
            {?CLIENT, make_ref(), look},
            {?CLIENT, {tcp, Broker}, broken},
            {?CLIENT, undefined, broken}
        ]
    ],
    over(Client, Broker).

closed_for_good(Client) ->
    ?assertEqual(Client, ?CLIENT:send([{publish(<<"a">>, 1), a}], Client)),
    ?assertEqual({wait, Client}, ?CLIENT:barrier(own, Client)),
    ?assertEqual(ok, ?CLIENT:ready(Client)),
    ?assertEqual(Client, ?CLIENT:hand_over([pingreq], Client)),
    ?assertEqual(Client, ?CLIENT:take_over(1, Client)),
    ?assertMatch({[], _}, quiet(Client)),
    ?assertEqual(ok, ?CLIENT:stop(Client)).

%% -------------------------------------------------------------------------------------------

publish(Topic, QoS) -> #publish{topic = Topic, qos = QoS}.

subscribe(Filter) -> #subscribe{filters = [{Filter, 0, false, 0}]}.

%% A client that waits for CONNACK, the broker's socket, and the CONNECT.
start(Options) ->
    {Listen, Port} = listen(),
    {ok, Socket} = nats_gateway_transport:connect({{127, 0, 0, 1}, Port}, none, ?WAIT),
    {ok, Broker} = gen_tcp:accept(Listen, ?WAIT),
    ok = gen_tcp:close(Listen),
    Defaults = #{timeout => ?WAIT, keepalive => 60, max_received => 1048576, watched => false},
    Connect = #connect{client_id = <<"id">>, keepalive = 60},
    {ok, Client} = ?CLIENT:start(Socket, Connect, maps:merge(Defaults, Options)),
    {Client, Broker, packet(Broker)}.

connected(Properties) ->
    {Client, Broker, _} = start(#{}),
    Size = byte_size(Properties),
    ok = gen_tcp:send(Broker, <<16#20, (3 + Size), 0, 0, Size, Properties/binary>>),
    {[{connected, _}], NClient} = events(1, Client),
    {NClient, Broker}.

%% Nothing but the DISCONNECT is left to say.
over(Client, Broker) ->
    {[], Done} = quiet(Client),
    ok = ?CLIENT:stop(Done),
    ?assertEqual(<<16#E0, 1, 0>>, packet(Broker)),
    ?assertEqual({error, closed}, gen_tcp:recv(Broker, 0, ?WAIT)),
    ok = gen_tcp:close(Broker).

%% So many events, and no more.
events(Count, Client) -> events(Count, [], Client).

events(Count, Events, Client) when length(Events) >= Count ->
    ?assertEqual(Count, length(Events)),
    {Events, Client};
events(Count, Events, Client) ->
    receive
        Message ->
            case ?CLIENT:handle_info(Message, Client) of
                ignore -> events(Count, Events, Client);
                {New, NClient} -> events(Count, Events ++ New, NClient)
            end
    after ?WAIT -> error({missing, Events})
    end.

%% What the broker has just sent is taken, however late it comes; the events of it and of the moment behind it.
taken(Client) ->
    receive
        Message ->
            {Events, NClient} = ?CLIENT:handle_info(Message, Client),
            quiet(Events, NClient)
    after ?WAIT -> error(nothing_came)
    end.

%% The events of the next moment.
quiet(Client) -> quiet([], Client).

quiet(Events, Client) ->
    receive
        Message ->
            case ?CLIENT:handle_info(Message, Client) of
                ignore -> quiet(Events, Client);
                {New, NClient} -> quiet(Events ++ New, NClient)
            end
    after 20 -> {Events, Client}
    end.
