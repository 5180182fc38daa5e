%% No operation costs more because there are many of its kind. What is counted are reductions, which
%% are the same on a busy machine.
-module(nats_gateway_scaling_tests).

-include("nats_gateway.hrl").
-include_lib("eunit/include/eunit.hrl").

-define(FEW, 100).
-define(MANY, 100000).
%% Of as many, so many are measured.
-define(MEASURED, 10000).
-define(FACTOR, 1.5).
-define(ATTEMPTS, 4).
%% Garbage collections count as reductions too, and are no cost of an operation: a heap that needs none.
-define(HEAP_WORDS, 30 * 1024 * 1024).

%% -------------------------------------------------------------------------------------------
%% Subscriptions

sid(N) -> integer_to_binary(N).

own(N) -> <<"s/", (integer_to_binary(N))/binary>>.

add(Sid, Filter, Group, S) ->
    {_, NS} = nats_gateway_subscriptions:add(Sid, Filter, Group, {Group, Filter}, S),
    nats_gateway_subscriptions:joined({Group, Filter}, NS).

added(N, Filter, Group) ->
    repeat(N, fun(I, S) -> add(sid(I), Filter(I), Group, S) end, nats_gateway_subscriptions:new()).

limit(Max) ->
    fun(N, S) ->
        {_, NS} = nats_gateway_subscriptions:limit(sid(N), Max, S),
        NS
    end.

deliver(Key, Topic) ->
    fun(_, S) ->
        {[_], _, NS} = nats_gateway_subscriptions:deliver(Key, Topic, undefined, S),
        NS
    end.

subscriptions_test_() ->
    One = fun(_) -> <<"a">> end,
    Wildcard = fun(N) -> <<"a/", (integer_to_binary(N))/binary, "/+">> end,
    Sub = fun(Filter, Group) ->
        flat("SUB " ++ binary_to_list(Filter(0)) ++ [$q || Group =/= undefined], fun(N) ->
            added(N, Filter, Group)
        end, fun(N, S) -> add(sid(?MANY + N), Filter(?MANY + N), Group, S) end)
    end,
    [
        Sub(fun own/1, undefined),
        Sub(One, undefined),
        Sub(One, <<"q">>),
        Sub(Wildcard, undefined),
        Sub(Wildcard, <<"q">>),
        flat("UNSUB", fun(N) -> added(N, fun own/1, undefined) end, limit(0)),
        flat("UNSUB on one subject", fun(N) -> added(N, One, undefined) end, limit(0)),
        flat("UNSUB of a queue group", fun(N) -> added(N, One, <<"q">>) end, limit(0)),
        flat("UNSUB of a queue group with wildcards", fun(N) -> added(N, Wildcard, <<"q">>) end, limit(0)),
        flat("UNSUB with max", fun(N) -> added(N, One, undefined) end, limit(5)),
        flat("max reached", fun(N) -> repeat(N, limit(1), added(N, fun own/1, undefined)) end, fun(N, S) ->
            (deliver({undefined, own(N)}, own(N)))(N, S)
        end),
        %% SUB and UNSUB in turn: who has left a line does not stay in it
        flat("members of a queue group come and go", fun(N) -> added(N, One, <<"q">>) end, fun(N, S) ->
            (limit(0))(?MANY + N, add(sid(?MANY + N), <<"a">>, <<"q">>, S))
        end),
        flat("queue members", fun(N) -> added(N, One, <<"q">>) end, deliver({<<"q">>, <<"a">>}, <<"a">>)),
        flat("overlapping filters", fun(N) ->
            add(<<"x">>, <<"a/+/b">>, <<"q">>, added(N, Wildcard, <<"q">>))
        end, deliver({<<"q">>, <<"a/+/b">>}, <<"a/x/b">>)),
        flat("503", fun(N) ->
            added(N, Wildcard, undefined)
        end, fun(_, S) ->
            ?assertEqual(undefined, nats_gateway_subscriptions:plain_sid(<<"a/x/y">>, S)),
            S
        end)
    ].

%% -------------------------------------------------------------------------------------------
%% The channel and the standalone host, with a broker that answers at once

%% A client of so many subscriptions.
subscribed(N) ->
    {Listen, Port} = listening(),
    _ = spawn_link(fun() -> broker(Listen, fun answer/2) end),
    Client = #{config := Config} = nats_gateway_host_mqtt_driver:client(Port),
    Full = Client#{config := maps:merge(nats_gateway_file:defaults(), Config)},
    {ok, _, _, New} = nats_gateway_channel:init(nats_gateway_host_mqtt, Full),
    Connected = taken([{connect, #{verbose => false}}], New),
    repeat(N, fun(I, Channel) -> taken([subscribe(I)], Channel) end, Connected).

subscribe(N) -> #sub{subject = <<"s.", (integer_to_binary(N))/binary>>, filter = own(N), sid = sid(N)}.

%% Each changes what all subscriptions were made with.
connect_again(N, Channel) -> taken([{connect, #{echo => N rem 2 =:= 0}}], Channel).

taken(Ops, Channel) ->
    answered(nats_gateway_channel:handle_ops(Ops, Channel)).

answered({ok, _, {ready, _}, Channel}) ->
    Channel;
answered({ok, _, _, Channel}) ->
    receive
        Message -> answered(nats_gateway_channel:handle_info(Message, Channel))
    end.

%% A login, and so many requests that the broker does not answer.
requested(N) ->
    {Listen, Port} = listening(),
    _ = spawn_link(fun() -> broker(Listen, fun(_, _) -> [] end) end),
    {wait, Connecting} = nats_gateway_host_mqtt:connect(nats_gateway_host_mqtt_driver:client(Port)),
    receive
        Message = {tcp, Socket, _} ->
            {_, Host} = nats_gateway_host_mqtt:handle_info(Message, Connecting),
            repeat(N, fun request/2, {Socket, 1, Host})
    end.

request(_, {Socket, Unanswered, Host}) ->
    Pub = #pub{
        subject = <<"nobody">>,
        topic = <<"nobody">>,
        reply_to = <<"r">>,
        reply_topic = <<"r">>,
        payload = <<"x">>
    },
    Options = #{confirm => false, no_responders => true},
    {ok, [], NHost} = nats_gateway_host_mqtt:publish([Pub], Options, Host),
    {Socket, Unanswered, NHost}.

%% One more, and an answer to the eldest.
request_and_answer(N, Requests) ->
    {Socket, Id, Host} = request(N, Requests),
    Answer = {tcp, Socket, <<16#40, 3, Id:16, 16#10>>},
    {[_], NHost} = nats_gateway_host_mqtt:handle_info(Answer, Host),
    {Socket, Id rem 65535 + 1, NHost}.

listening() ->
    {ok, Listen} = gen_tcp:listen(0, [binary, {active, false}, {ip, {127, 0, 0, 1}}, {nodelay, true}]),
    {ok, Port} = inet:port(Listen),
    {Listen, Port}.

broker(Listen, Answer) ->
    {ok, Socket} = gen_tcp:accept(Listen),
    {ok, <<16#10, Length>>} = gen_tcp:recv(Socket, 2),
    {ok, _} = gen_tcp:recv(Socket, Length),
    ok = gen_tcp:send(Socket, <<16#20, 3, 0, 0, 0>>),
    broker(Socket, <<>>, Answer).

broker(Socket, Before, Answer) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, Bytes} ->
            {Answers, Rest} = answers(<<Before/binary, Bytes/binary>>, Answer, []),
            ok = gen_tcp:send(Socket, Answers),
            broker(Socket, Rest, Answer);
        {error, closed} ->
            ok
    end.

%% The packets here are short.
answers(<<First, Length, Body:Length/binary, Rest/binary>>, Answer, Answers) ->
    answers(Rest, Answer, [Answers | Answer(First, Body)]);
answers(Rest, _, Answers) ->
    {Answers, Rest}.

answer(16#82, <<Id:16, _/binary>>) -> <<16#90, 4, Id:16, 0, 0>>;
answer(16#A2, <<Id:16, _/binary>>) -> <<16#B0, 4, Id:16, 0, 0>>;
answer(16#C0, <<>>) -> <<16#D0, 0>>.

second_connect_test_() ->
    {timeout, 240, fun() ->
        Cost = fun(N, Times) -> cost(N, Times, fun subscribed/1, fun connect_again/2) / N end,
        assert_flat(Cost(?FEW, ?MEASURED div ?FEW), Cost(?MANY, 2))
    end}.

pending_requests_test_() ->
    [
        flat("request", fun requested/1, fun request/2),
        flat("request and answer", fun requested/1, fun request_and_answer/2)
    ].

%% -------------------------------------------------------------------------------------------
%% Measurement

%% What is prepared for N operations, and each of these.
flat(Name, Prepare, Operation) -> {timeout, 300, {Name, fun() ->
    Cost = fun(N) -> cost(N, min(N, ?MEASURED), Prepare, Operation) end,
    Few = Cost(?FEW),
    assert_flat(Few, least(fun() -> Cost(?MANY) end, ?FACTOR * Few, ?ATTEMPTS))
end}}.

%% Collections of garbage count as reductions, and where the machine is busy there are more of them. The
%% least of some runs is what the operation itself costs.
least(Measure, Enough, Attempts) ->
    case Measure() of
        Cost when Cost =< Enough; Attempts =:= 1 -> Cost;
        Cost -> min(Cost, least(Measure, Enough, Attempts - 1))
    end.

assert_flat(Few, Many) -> ?assert(Many =< ?FACTOR * Few, {per_operation, {few, Few}, {many, Many}}).

%% Reductions of one operation, so many times, in a process that does nothing else.
cost(N, Times, Prepare, Operation) ->
    Self = self(),
    {Pid, Monitor} = spawn_opt(
        fun() ->
            State = Prepare(N),
            true = erlang:garbage_collect(),
            {reductions, Before} = process_info(self(), reductions),
            _ = repeat(Times, Operation, State),
            {reductions, After} = process_info(self(), reductions),
            Self ! {self(), (After - Before) / Times}
        end,
        [monitor, {min_heap_size, ?HEAP_WORDS}, {min_bin_vheap_size, ?HEAP_WORDS}]
    ),
    receive
        {Pid, Cost} ->
            receive
                {'DOWN', Monitor, process, Pid, _} -> Cost
            end;
        {'DOWN', Monitor, process, Pid, Reason} ->
            error(Reason)
    end.

%% From the first to the last.
repeat(N, Operation, State) -> lists:foldl(Operation, State, lists:seq(1, N)).
