-module(nats_gateway_subscribing_tests).

-include_lib("eunit/include/eunit.hrl").
-include("nats_gateway.hrl").

-define(NO_LIMITS, #{max_subscriptions => infinity, max_sub_tokens => infinity}).

sub(Subject) -> sub(Subject, <<"1">>).

sub(Subject, Sid) ->
    #sub{subject = Subject, filter = nats_gateway_nif:filter(Subject, <<>>), sid = Sid}.

%% The subscriptions of a client with this many sids.
subscriptions(Count) ->
    lists:foldl(
        fun(Sid, Subs) ->
            Subject = integer_to_binary(Sid),
            {new_key, NSubs} =
                nats_gateway_subscriptions:add(Subject, Subject, undefined, {undefined, Subject}, Subs),
            NSubs
        end,
        nats_gateway_subscriptions:new(),
        lists:seq(1, Count)
    ).

judge(Sub) -> judge(Sub, ?NO_LIMITS, 0).

judge(Sub, Limits, Count) ->
    nats_gateway_subscribing:judge(Sub, maps:merge(?NO_LIMITS, Limits), subscriptions(Count)).

a_subscription_may_go_to_the_host_test() ->
    ?assertEqual(ok, judge(sub(<<"a.*.>">>))).

the_number_of_subscriptions_test() ->
    Max = #{max_subscriptions => 2},
    ?assertEqual(ok, judge(sub(<<"a">>, <<"9">>), Max, 0)),
    ?assertEqual(ok, judge(sub(<<"a">>, <<"9">>), Max, 1)),
    ?assertEqual(subscriptions_exceeded, judge(sub(<<"a">>, <<"9">>), Max, 2)),
    ?assertEqual(subscriptions_exceeded, judge(sub(<<"a">>, <<"9">>), #{max_subscriptions => 0}, 0)).

the_number_of_tokens_test() ->
    Max = #{max_sub_tokens => 2},
    ?assertEqual(ok, judge(sub(<<"a">>), Max, 0)),
    ?assertEqual(ok, judge(sub(<<"a.b">>), Max, 0)),
    ?assertEqual(too_many_tokens, judge(sub(<<"a.b.c">>), Max, 0)),
    ?assertEqual(too_many_tokens, judge(sub(<<"a">>), #{max_sub_tokens => 0}, 0)).

a_sid_is_used_once_test() ->
    ?assertEqual(in_use, judge(sub(<<"a">>, <<"1">>), #{}, 1)).

a_filter_that_no_topic_can_match_is_refused_test() ->
    ?assertEqual(invalid_subject, judge((sub(<<"a">>))#sub{filter = invalid})),
    ?assertEqual(invalid_subject, judge((sub(<<"a">>))#sub{share_name = invalid})).

%% Each check holds although the ones behind it would refuse the subscription, too.
the_order_of_the_checks_test() ->
    Sub = (sub(<<"$share.q.a">>, <<"1">>))#sub{filter = invalid},
    Plain = Sub#sub{subject = <<"a.b.c">>},
    Strict = #{max_subscriptions => 1, max_sub_tokens => 1},
    ?assertEqual(denied, judge(Sub, Strict, 1)),
    ?assertEqual(too_many_tokens, judge(Plain, Strict, 1)),
    ?assertEqual(subscriptions_exceeded, judge(Plain, Strict#{max_sub_tokens => infinity}, 1)),
    ?assertEqual(in_use, judge(Plain, #{}, 1)),
    ?assertEqual(invalid_subject, judge(Plain, #{}, 0)).

texts_test() ->
    Text = fun(Refusal, QueueGroup) ->
        iolist_to_binary(nats_gateway_subscribing:refused(Refusal, <<"a.b">>, QueueGroup))
    end,
    ?assertEqual(
        <<"-ERR 'Permissions Violation for Subscription to \"a.b\"'\r\n">>, Text(denied, undefined)
    ),
    ?assertEqual(
        <<"-ERR 'Permissions Violation for Subscription to \"a.b\" using queue \"q\"'\r\n">>,
        Text(denied, <<"q">>)
    ),
    ?assertEqual(
        <<"-ERR 'Permissions Violation for Subscription to \"a.b\", too many tokens'\r\n">>,
        Text(too_many_tokens, <<"q">>)
    ),
    ?assertEqual(<<"-ERR 'Invalid Subject'\r\n">>, Text(invalid_subject, undefined)),
    ?assertEqual(<<"-ERR 'maximum subscriptions exceeded'\r\n">>, Text(subscriptions_exceeded, undefined)).

%% The way back from a topic filter, for subscriptions that somebody else made.
the_subject_of_a_filter_test() ->
    [
        ?assertEqual(
            Subject, nats_gateway_subscribing:subject(nats_gateway_nif:filter(Subject, Mountpoint), Mountpoint)
        )
     || Subject <- [<<"a">>, <<"a.*.c">>, <<"a.>">>, <<"*">>, <<">">>, <<"a./.b">>, <<"a//b.c">>],
        Mountpoint <- [<<>>, <<"m/">>]
    ].
